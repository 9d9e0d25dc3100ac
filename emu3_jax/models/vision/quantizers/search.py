"""The search for the entry of each latent, without all distances in memory at once."""

import jax
import jax.numpy as jnp

# A block of distances is kept under 64 MiB of float32: 2**24 numbers.
MAX_DISTANCES = 2**24


def nearest_codes(latents: jax.Array, codebook_ND: jax.Array) -> jax.Array:
    """Index of the codebook entry nearest in squared L2 distance; of several, the first.

    Args:
      latents: float [..., D].
      codebook_ND: float [N, D].

    Returns:
      int32 [...] in [0, N). The distances are computed in float32 as |x|^2 + |e|^2 - 2 x.e, one
      matmul for at most `MAX_DISTANCES` of them at a time.
    """
    codebook_ND = codebook_ND.astype(jnp.float32)
    squares_N = jnp.sum(codebook_ND**2, axis=-1)

    def search(x_PD):
        distance_PN = jnp.sum(x_PD**2, axis=-1, keepdims=True) + squares_N
        return jnp.argmin(distance_PN - 2 * products(x_PD, codebook_ND), axis=-1)

    return _search(search, latents, codebook_ND.shape[0])


def aligned_codes(latents: jax.Array, codebook_ND: jax.Array) -> jax.Array:
    """Index of the entry with the largest inner product; otherwise as `nearest_codes`."""
    codebook_ND = codebook_ND.astype(jnp.float32)

    def search(x_PD):
        return jnp.argmax(products(x_PD, codebook_ND), axis=-1)

    return _search(search, latents, codebook_ND.shape[0])


def products(x_PD: jax.Array, codebook_ND: jax.Array) -> jax.Array:
    """Inner products, float32 [P, N].

    Full precision: TF32 or bfloat16 products would change which of two near entries wins.
    """
    return jnp.matmul(x_PD, codebook_ND.T, precision=jax.lax.Precision.HIGHEST)


def in_blocks(x_PD: jax.Array, size: int) -> jax.Array:
    """[blocks, rows, D]: block b has rows b, b + blocks, b + 2 blocks, …; zeros after the last row.

    A block has at most MAX_DISTANCES / `size` rows. They come from all parts of the batch, so that
    each device has a share of every block.
    """
    P, D = x_PD.shape
    blocks = -(-P // max(1, MAX_DISTANCES // size))
    rows = -(-P // blocks)
    padded_PD = jnp.pad(x_PD, ((0, blocks * rows - P), (0, 0)))
    return padded_PD.reshape(rows, blocks, D).swapaxes(0, 1)


def out_of_blocks(y: jax.Array, count: int) -> jax.Array:
    """The inverse of `in_blocks` for `count` latents: [blocks, rows, ...] -> [count, ...]."""
    return y.swapaxes(0, 1).reshape(-1, *y.shape[2:])[:count]


def _search(search, latents, size):
    latents_PD = latents.astype(jnp.float32).reshape(-1, latents.shape[-1])
    codes = jax.lax.map(search, in_blocks(latents_PD, size))
    codes_P = out_of_blocks(codes, latents_PD.shape[0])
    return codes_P.astype(jnp.int32).reshape(latents.shape[:-1])
