"""Which weights these are: the same for the same values, however they are sharded or stored."""

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from emu3_jax import sharding
from emu3_jax.interop.language.llama import EMBEDDING, HEAD

_MIX = (2654435761, 2246822519)  # odd 32-bit constants


def weights_fingerprint(params: Any, vocab_size: int, dtype: str) -> str:
    """Returns twelve hex digits of the values, whatever their sharding.

    Integers are added without rounding, so the order of the additions does not matter. The rows
    that pad the vocabulary do not count.

    Args:
      params: of a Transformer, without boxes.
      vocab_size: true number of ids.
      dtype: "float32", or "bfloat16": weights that are equal after rounding to it count as equal,
        such as a model and its export.
    """
    flat = flax.traverse_util.flatten_dict(params)
    return together({path: of_leaf(path, x, vocab_size, dtype) for path, x in flat.items()})


def of_leaf(path: tuple[str, ...], leaf: jax.Array, vocab_size: int, dtype: str) -> bytes:
    """Returns what the fingerprint needs to know of one leaf; arguments as above."""
    rows = vocab_size if path == EMBEDDING else leaf.shape[0]
    columns = vocab_size if path == HEAD else leaf.shape[-1]
    sums = sharding.to_host(_sums(leaf, rows, columns, dtype))
    return f"{'/'.join(path)} {rows} {columns} {leaf.shape[1:-1]}".encode() + sums.tobytes()


def together(leaves: Mapping[tuple[str, ...], bytes]) -> str:
    """Returns the fingerprint of the weights whose `of_leaf` is given, in any order."""
    digest = hashlib.sha256()
    for path in sorted(leaves, key=lambda names: "".join(f"[{name!r}]" for name in names)):
        digest.update(leaves[path])
    return digest.hexdigest()[:12]


@functools.partial(jax.jit, static_argnames="dtype")
def _sums(leaf: jax.Array, rows: int, columns: int, dtype: str) -> jax.Array:
    """uint32 [2]: sums over all elements of their bits, mixed with their place."""
    unsigned = {"float32": jnp.uint32, "bfloat16": jnp.uint16}[dtype]
    bits = jax.lax.bitcast_convert_type(leaf.astype(dtype), unsigned).astype(jnp.uint32)
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
