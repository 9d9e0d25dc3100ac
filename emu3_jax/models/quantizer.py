"""Vector quantisation: the nearest codebook entry, its losses and the care of unused entries.

`Codebook` is the whole interface a quantizer shows to the vision tokenizer: `codes(latents)` gives
integers and `entries(codes)` gives vectors. Everything else here is a pure function, so a training
task composes what it needs (plain losses, a moving-average codebook, revival) outside the model.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

# A block of distances is kept under 64 MiB of float32: 2**24 numbers.
MAX_DISTANCES = 2**24
# Noise on a revived entry, as a part of the latents' standard deviation: enough to part two entries
# that drew the same latent, far too little to move either from where it was put.
REVIVAL_NOISE = 1e-2


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
    N, D = codebook_ND.shape
    latents_PD = latents.astype(jnp.float32).reshape(-1, D)
    squares_N = jnp.sum(codebook_ND**2, axis=-1)

    def search(x_PD):
        # Full precision: TF32 or bfloat16 products would change which of two near entries wins.
        dot_PN = jnp.matmul(x_PD, codebook_ND.T, precision=jax.lax.Precision.HIGHEST)
        distance_PN = jnp.sum(x_PD**2, axis=-1, keepdims=True) + squares_N - 2 * dot_PN
        return jnp.argmin(distance_PN, axis=-1).astype(jnp.int32)

    P = latents_PD.shape[0]
    chunk = max(1, MAX_DISTANCES // N)
    if chunk >= P:
        codes_P = search(latents_PD)
    else:
        blocks = -(-P // chunk)
        padded_PD = jnp.pad(latents_PD, ((0, blocks * chunk - P), (0, 0)))
        codes_P = jax.lax.map(search, padded_PD.reshape(blocks, chunk, D)).reshape(-1)[:P]
    return codes_P.reshape(latents.shape[:-1])


class Codebook(nn.Module):
    """A table of entries searched by plain nearest neighbour, without normalisation.

    Attributes:
      size: number of entries, N.
      dim: dimensions of an entry, D.
      param_dtype: type of the table.
    """

    size: int
    dim: int
    param_dtype: str = "float32"

    def setup(self):  # noqa: D102 (linen's hook)
        # U(-1/N, 1/N): the initialisation of the released code.
        def uniform(key, shape, dtype):
            return jax.random.uniform(key, shape, dtype, -1.0 / self.size, 1.0 / self.size)

        self.embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(uniform, ("code", None)),
            (self.size, self.dim),
            jnp.dtype(self.param_dtype),
        )

    def codes(self, latents: jax.Array) -> jax.Array:
        """float [..., D] -> int32 [...]; no gradient flows through the choice."""
        return nearest_codes(jax.lax.stop_gradient(latents), self.embedding)

    def entries(self, codes: jax.Array) -> jax.Array:
        """int [...] in [0, N) -> float32 [..., D]; the gradient reaches the table."""
        return jnp.take(self.embedding, codes, axis=0).astype(jnp.float32)


def straight_through(latents: jax.Array, quantized_raw: jax.Array) -> jax.Array:
    """The values of `quantized_raw` with the gradient of `latents`; both [..., D]."""
    return latents + jax.lax.stop_gradient(quantized_raw - latents)


def commitment_loss(latents: jax.Array, quantized_raw: jax.Array) -> jax.Array:
    """Mean squared distance that pulls the latents to their entries; float32 scalar."""
    return jnp.mean(jnp.square(latents - jax.lax.stop_gradient(quantized_raw)))


def codebook_loss(latents: jax.Array, quantized_raw: jax.Array) -> jax.Array:
    """Mean squared distance that pulls the entries to their latents; float32 scalar."""
    return jnp.mean(jnp.square(jax.lax.stop_gradient(latents) - quantized_raw))


def code_counts(codes: jax.Array, size: int) -> jax.Array:
    """How often each of `size` codes occurs in `codes` (int, any shape); float32 [size]."""
    return jnp.zeros(size, jnp.float32).at[codes.reshape(-1)].add(1.0)


def update_usage(usage_N: jax.Array, codes: jax.Array, decay: float) -> jax.Array:
    """Moving average of the hits an entry gets per batch: usage * decay + counts * (1 - decay)."""
    return decay * usage_N + (1.0 - decay) * code_counts(codes, usage_N.shape[0])


def perplexity(counts_N: jax.Array) -> jax.Array:
    """exp(entropy) of the code distribution, the number of codes in effective use: in [1, N].

    Args:
      counts_N: non-negative weights, not all zero, for instance hits or their moving average.
    """
    share_N = counts_N / jnp.sum(counts_N)
    return jnp.exp(jnp.sum(jax.scipy.special.entr(share_N)))


def revive_dead_codes(
    codebook_ND: jax.Array,
    usage_N: jax.Array,
    latents_MD: jax.Array,
    key: jax.Array,
    threshold: float,
) -> tuple[jax.Array, jax.Array]:
    """Moves every entry used less than `threshold` onto a random current latent.

    Latents are drawn without replacement while they last, and a little noise parts the entries that
    share one. The mask tells the caller for which entries the usage it keeps begins anew.

    Args:
      codebook_ND: float [N, D].
      usage_N: float [N], as kept by `update_usage`.
      latents_MD: float [M, D], latents of the current batch.
      key: a random key.
      threshold: entries with a smaller usage are replaced.

    Returns:
      (codebook [N, D] of the same type, bool [N] with True where an entry was replaced).
    """
    order_key, noise_key = jax.random.split(key)
    dead_N = usage_N < threshold
    order_M = jax.random.permutation(order_key, latents_MD.shape[0])
    rank_N = jnp.maximum(jnp.cumsum(dead_N) - 1, 0)
    drawn_ND = latents_MD[order_M[rank_N % latents_MD.shape[0]]]
    noise_ND = jax.random.normal(noise_key, codebook_ND.shape) * jnp.std(latents_MD, axis=0)
    fresh_ND = (drawn_ND + REVIVAL_NOISE * noise_ND).astype(codebook_ND.dtype)
    return jnp.where(dead_N[:, None], fresh_ND, codebook_ND), dead_N
