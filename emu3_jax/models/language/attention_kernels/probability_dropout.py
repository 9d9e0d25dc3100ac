"""Dropout on attention probabilities: whether one is kept depends on its position alone.

Row, head, query and key count from the start of the whole batch. An implementation may therefore
visit probabilities in any order and any blocks, on any mesh, and always draws the same mask. The
backward pass draws it again instead of storing S^2 values.
"""

import jax
import jax.numpy as jnp

from emu3_jax.models.language.layers import dropped_bytes

TILE = 8
"""Neighbouring keys that share one draw: the two words of a folded key are 8 bytes, one each."""


def scale(rate: float) -> float:
    """The factor of a kept probability."""
    return 256 / (256 - dropped_bytes(rate))


def kept(key, rate: float, rows_B, heads_N, queries_Q, first_key, keys: int) -> jax.Array:
    """bool [B, N, Q, keys]: which probabilities are not dropped.

    Args:
        key: of the layer and step.
        rate: share to drop, accurate to 1/512 as in `layers.dropout`.
        rows_B, heads_N, queries_Q: int, positions in the whole batch.
        first_key, keys: the keys at positions first_key, first_key + 1, ... of the row.
    """

    def fold(keys, numbers):
        each = jax.vmap(jax.random.fold_in, (None, 0))
        for _ in range(keys.ndim):
            each = jax.vmap(each, (0, None))
        return each(keys, numbers)

    # One tile more than the keys fill: the first key may be inside a tile.
    tiles = first_key // TILE + jnp.arange(-(-keys // TILE) + 1)
    folded = fold(fold(fold(fold(key, rows_B), heads_N), queries_Q), tiles)
    words = jax.random.key_data(folded)[..., :2]
    numbers = jax.lax.bitcast_convert_type(words, jnp.uint8)
    numbers = numbers.reshape(*numbers.shape[:3], -1)
    numbers = jax.lax.dynamic_slice_in_dim(numbers, first_key % TILE, keys, axis=-1)
    return numbers >= dropped_bytes(rate)
