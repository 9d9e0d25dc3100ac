"""Rotary position embedding, rotate-half form: dimensions i and i + H/2 rotate together.

The other form in use has interleaved pairs (i, i + 1). The released weights need this one.
"""

import jax
import jax.numpy as jnp


def rotation(
    positions_BS: jax.Array, head_dim: int, theta: float, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of position times frequency.

    Frequencies are theta^(-2i/H) for i in 0..H/2-1 (theta = 1e6 in the released config.json).
    Angles are float32; only their cosine and sine are rounded to `dtype`. At position 131,071 a
    bfloat16 angle would be wrong by whole turns.

    Returns:
        cos_BSH, sin_BSH of [B, S, head_dim / 2] in `dtype`.
    """
    exponent_H = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    angle_BSH = positions_BS.astype(jnp.float32)[..., None] * (1.0 / theta**exponent_H)
    return jnp.cos(angle_BSH).astype(dtype), jnp.sin(angle_BSH).astype(dtype)


def rotate(x_BSNH: jax.Array, cos_BSH: jax.Array, sin_BSH: jax.Array) -> jax.Array:
    """Rotates each head of x [B, S, N, H] by the angles of its position; same shape and dtype."""
    first, second = jnp.split(x_BSNH, 2, axis=-1)
    cos, sin = cos_BSH[:, :, None, :], sin_BSH[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def positions_in_segments(segment_ids_BS: jax.Array) -> jax.Array:
    """Positions that restart at 0 where the segment id changes along a row, int32 [B, S]."""
    index_S = jnp.arange(segment_ids_BS.shape[1], dtype=jnp.int32)
    starts_BS = segment_ids_BS[:, 1:] != segment_ids_BS[:, :-1]
    starts_BS = jnp.pad(starts_BS, ((0, 0), (1, 0)), constant_values=True)
    return index_S - jax.lax.cummax(jnp.where(starts_BS, index_S, 0), axis=1)
