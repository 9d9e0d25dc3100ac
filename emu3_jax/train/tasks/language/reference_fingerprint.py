"""A fingerprint of a reference's weights, the same on every mesh.

Unlike `interop.language.weights_fingerprint`, which rounds to bfloat16, it is of the exact values.
It leaves out the rows that pad the vocabulary, which are random.
"""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp

from emu3_jax import sharding
from emu3_jax.interop.language.llama import EMBEDDING, HEAD

_MIX = (2654435761, 2246822519)  # odd 32-bit constants


def reference_fingerprint(params: Any, vocab_size: int) -> str:
    """Returns sixteen hex digits of the values in float32, whatever their sharding.

    Integers are added without rounding, so the order of the additions does not matter. The rows
    that pad the vocabulary do not count.

    Args:
      params: of a Transformer, without boxes.
      vocab_size: true number of ids.
    """
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    for path, leaf in sorted(leaves, key=lambda pair: jax.tree_util.keystr(pair[0])):
        names = tuple(key.key for key in path)
        rows = vocab_size if names == EMBEDDING else leaf.shape[0]
        columns = vocab_size if names == HEAD else leaf.shape[-1]
        sums = _sums(leaf, rows, columns)
        digest.update(f"{'/'.join(names)} {rows} {columns} {leaf.shape[1:-1]}".encode())
        digest.update(sharding.to_host(sums).tobytes())
    return digest.hexdigest()[:16]


@jax.jit
def _sums(leaf: jax.Array, rows: int, columns: int) -> jax.Array:
    """uint32 [2]: sums over all elements of their bits, mixed with their place."""
    bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
    place, inside = jnp.zeros(leaf.shape, jnp.uint32), jnp.ones(leaf.shape, bool)
    for axis in range(leaf.ndim):
        index = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        place = place * jnp.uint32(_MIX[0]) + index + jnp.uint32(1)
        if axis == 0:
            inside &= index < rows
        if axis == leaf.ndim - 1:
            inside &= index < columns
    sums = []
    for mix in _MIX:
        mixed = (bits ^ (place * jnp.uint32(mix))) * jnp.uint32(mix)
        mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(_MIX[1])
        sums.append(jnp.sum(jnp.where(inside, mixed ^ (mixed >> 13), 0), dtype=jnp.uint32))
    return jnp.stack(sums)
