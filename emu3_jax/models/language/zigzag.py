"""The order of tokens in rows that are sharded over mesh axis `context`.

The work of a causal query at position p is proportional to p. If rows were cut into equal pieces,
the device with the last piece would work longest while the others wait. Over C devices a row is
therefore cut into 2 C chunks, and device d holds chunk d and chunk 2 C - 1 - d: every device does
the same work.

The model reorders its integer inputs at its start and its hidden states at its end. All layers
between work in zigzag order, which is invisible outside.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from emu3_jax.sharding import mesh_axes

(AXIS,) = mesh_axes("sequence")


def parts(length: int) -> int:
    """How many devices share a row of `length` tokens in the mesh that is set.

    A single token is not sharded. ValueError as in `check_length`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or length == 1:
        return 1
    check_length(mesh, "sequence length", length)
    return mesh.shape[AXIS]


def check_length(mesh, name: str, length: int) -> None:
    """ValueError if rows of `length` tokens, called `name`, cannot be sharded on this mesh."""
    devices = mesh.shape[AXIS]
    if devices > 1 and length % (2 * devices):
        raise ValueError(
            f"{name}={length} is cut into two chunks for each device of mesh axis "
            f"{AXIS}={devices}, so it must be a multiple of {2 * devices}"
        )


def chunk_starts(length: int, devices: int) -> np.ndarray:
    """First position of each chunk a device holds: int32 [devices, 2], or [[0]] for one device."""
    if devices == 1:
        return np.zeros((1, 1), np.int32)
    device = np.arange(devices, dtype=np.int32)
    return np.stack([device, 2 * devices - 1 - device], axis=1) * (length // (2 * devices))


def row_positions(length: int, devices: int) -> np.ndarray:
    """Position in the row of each token in the order of the devices, int32 [length]."""
    starts = chunk_starts(length, devices)
    chunk = np.arange(length // starts.size, dtype=np.int32)
    return (starts[..., None] + chunk).reshape(-1)


def natural_order(x: jax.Array, devices: int, axis: int) -> jax.Array:
    """Reorders chunks gathered from all devices along `axis` into row order."""
    if devices == 1:
        return x
    shape = x.shape
    chunks = x.reshape(*shape[:axis], devices, 2, shape[axis] // (2 * devices), *shape[axis + 1 :])
    first, second = (jax.lax.index_in_dim(chunks, i, axis + 1, keepdims=False) for i in (0, 1))
    return jnp.concatenate([first, jnp.flip(second, axis)], axis).reshape(shape)


def enter(x_BS: jax.Array) -> jax.Array:
    """Row order -> zigzag order of [B, S, ...]; two chunks per device cross the network."""
    return _exchange(x_BS, _to_zigzag)


def leave(x_BS: jax.Array) -> jax.Array:
    """Zigzag order -> row order of [B, S, ...]."""
    return _exchange(x_BS, _to_rows)


def _exchange(x_BS, exchange):
    if parts(x_BS.shape[1]) == 1:
        return x_BS
    spec = PartitionSpec(None, AXIS)
    return jax.shard_map(exchange, in_specs=spec, out_specs=spec, axis_names={AXIS})(x_BS)


# In row order device d holds chunks 2 d and 2 d + 1. In zigzag order every device holds one even
# and one odd chunk, the even one first where d is even. So each way is two permutations.


def _holders(devices: int, odd: int) -> list[tuple[int, int]]:
    """(device in row order, device in zigzag order) of each even or odd chunk."""
    chunks = range(odd, 2 * devices, 2)
    return [(chunk // 2, min(chunk, 2 * devices - 1 - chunk)) for chunk in chunks]


def _to_zigzag(x_BS):
    devices = jax.lax.axis_size(AXIS)
    even, odd = jnp.split(x_BS, 2, axis=1)
    even = jax.lax.ppermute(even, AXIS, _holders(devices, 0))
    odd = jax.lax.ppermute(odd, AXIS, _holders(devices, 1))
    return _even_device(jnp.concatenate([even, odd], 1), jnp.concatenate([odd, even], 1))


def _to_rows(x_BS):
    devices = jax.lax.axis_size(AXIS)
    first, second = jnp.split(x_BS, 2, axis=1)
    even, odd = _even_device(first, second), _even_device(second, first)
    even = jax.lax.ppermute(even, AXIS, [(to, of) for of, to in _holders(devices, 0)])
    odd = jax.lax.ppermute(odd, AXIS, [(to, of) for of, to in _holders(devices, 1)])
    return jnp.concatenate([even, odd], axis=1)


def _even_device(here, otherwise):
    return jnp.where(jax.lax.axis_index(AXIS) % 2 == 0, here, otherwise)
