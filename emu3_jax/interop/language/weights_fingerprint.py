"""Which weights these are: the same for the same values, however they are sharded or stored."""

import hashlib
import math

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np


def weights_fingerprint(params: dict) -> str:
    """Returns twelve hex digits of weights, rounded to bfloat16.

    Whole numbers are summed, modulo 2^32, so that the order in which devices add does not matter.
    Every number counts times an odd factor that depends on its place.

    Args:
      params: nested dicts of float32 or bfloat16 arrays, on any mesh or on the host.
    """
    digest = hashlib.sha256()
    for path, array in sorted(flax.traverse_util.flatten_dict(params).items()):
        digest.update(f"{'/'.join(path)} {list(array.shape)} {int(_checksum(array))};".encode())
    return digest.hexdigest()[:12]


@jax.jit
def _checksum(array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(jnp.asarray(array).astype(jnp.bfloat16), jnp.uint16)
    place = jnp.zeros(array.shape, jnp.uint32)
    for axis, size in enumerate(array.shape):
        stride = math.prod(array.shape[axis + 1 :]) % 2**32
        here = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        place += here * np.uint32(stride) if size > 1 else 0
    # Knuth's multiplicative hash: neighbours get unrelated factors.
    factor = place * np.uint32(2654435761) | np.uint32(1)
    return jnp.sum(bits.astype(jnp.uint32) * factor, dtype=jnp.uint32)
