"""Codebook maintenance: initial entries, which entries are in use, averages, dead-code revival.

Pure functions of arrays, which a training task calls outside the model.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emu3_jax import sharding
from emu3_jax.models.vision.quantizers.search import nearest_codes

# Noise on an entry that is set to a latent, as a fraction of the latents' standard deviation:
# enough to separate two entries set to the same latent, too little to move either away from it.
REVIVAL_NOISE = 1e-2


# ----------------------------------------------------------------------------------- use


def code_counts(codes: jax.Array, size: int) -> jax.Array:
    """How often each of `size` codes occurs in `codes` (int, any shape); float32 [size]."""
    return jnp.zeros(size, jnp.float32).at[codes.reshape(-1)].add(1.0)


def update_usage(usage_N: jax.Array, codes: jax.Array, decay: float) -> jax.Array:
    """Moving average of the hits per entry and batch: usage * decay + counts * (1 - decay)."""
    return decay * usage_N + (1.0 - decay) * code_counts(codes, usage_N.shape[0])


def perplexity(counts_N: jax.Array) -> jax.Array:
    """exp(entropy) of the code distribution, the number of codes in effective use: in [1, N].

    Args:
      counts_N: non-negative weights, not all zero, for instance hits or their moving average.
    """
    share_N = counts_N / jnp.sum(counts_N)
    return jnp.exp(jnp.sum(jax.scipy.special.entr(share_N)))


def usage_drift(old_ND: jax.Array, new_ND: jax.Array) -> jax.Array:
    """How far the entries moved: the mean distance, over the root mean square distance of the old
    entries from their mean. 0 at rest; near 1.4 where a table is replaced by one as wide.

    Args:
      old_ND, new_ND: float [N, D], entries as decoded; the old ones must not all be equal.

    Returns:
      float32 scalar.
    """
    old_ND, new_ND = old_ND.astype(jnp.float32), new_ND.astype(jnp.float32)
    moved = jnp.mean(jnp.linalg.norm(new_ND - old_ND, axis=-1))
    about_mean_ND = old_ND - jnp.mean(old_ND, axis=0)
    return moved / jnp.sqrt(jnp.mean(jnp.sum(about_mean_ND**2, axis=-1)))


# ----------------------------------------------------------------------------------- entries


def revive_dead_codes(
    codebook_ND: jax.Array,
    usage_N: jax.Array,
    latents_MD: jax.Array,
    key: jax.Array,
    threshold: float,
) -> tuple[jax.Array, jax.Array]:
    """Moves every entry used less than `threshold` onto a random current latent.

    Latents are drawn without replacement while there are enough, and a little noise separates the
    entries that share one. The caller resets its usage of the entries in the returned mask.

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
    fresh_ND = drawn_ND + _noise(noise_key, codebook_ND.shape, latents_MD)
    return jnp.where(dead_N[:, None], fresh_ND.astype(codebook_ND.dtype), codebook_ND), dead_N


@functools.partial(jax.jit, static_argnames="size")
def kmeans(latents_MD: jax.Array, key: jax.Array, size: int, iterations: int) -> jax.Array:
    """A codebook to start with: k-means clusters of a batch of latents.

    The start is that of k-means++ (Arthur and Vassilvitskii 2007): each entry is a latent, drawn in
    proportion to its squared distance to the nearest entry so far. If fewer than `size` latents
    differ, they are repeated with a little noise. A cluster that loses its latents does not move.

    Args:
      latents_MD: float [M, D]; M from a few times `size` upwards for a good codebook.
      key: a random key.
      size: entries, N.
      iterations: of Lloyd's algorithm after the start.

    Returns:
      float32 [N, D]. Further memory: a few numbers per latent, and `search.MAX_DISTANCES`.

    Raises:
      ValueError: no latents, or not [M, D].
    """
    if latents_MD.ndim != 2 or not latents_MD.shape[0]:
        raise ValueError(
            f"k-means needs latents of shape [M, D] with M >= 1, found {list(latents_MD.shape)}."
        )
    latents_MD = latents_MD.astype(jnp.float32)

    def lloyd(_, codebook_ND):
        counts_N, sums_ND = _totals(latents_MD, nearest_codes(latents_MD, codebook_ND), size)
        means_ND = sums_ND / jnp.maximum(counts_N, 1.0)[:, None]
        return jnp.where(counts_N[:, None] > 0, means_ND, codebook_ND)

    # Replicated: entries are drawn one by one, and each would cross the mesh otherwise.
    start_ND = _far_apart(sharding.constrain(latents_MD, None, None), key, size)
    return jax.lax.fori_loop(0, iterations, lloyd, start_ND)


def _far_apart(latents_MD, key, size):
    """The start of k-means++, [size, D]."""
    M, D = latents_MD.shape
    draw_key, noise_key = jax.random.split(key)
    side = math.isqrt(M - 1) + 1
    padded_PD = jnp.pad(latents_MD, ((0, side**2 - M), (0, 0)))
    real_P = (jnp.arange(side**2) < M).astype(jnp.float32)

    def add_entry(i, state):
        codebook_ND, repeated_N, odds_P = state
        shares = jax.random.uniform(jax.random.fold_in(draw_key, i), (3,))
        # A row of the square, then a position in it: cumulative sums of `side` numbers, not of M.
        odds_RC = odds_P.reshape(side, side)
        row = _drawn(jnp.sum(odds_RC, axis=1), shares[0])
        latent = row * side + _drawn(odds_RC[row], shares[1])
        anywhere = (shares[2] * M).astype(latent.dtype)
        latent = jnp.minimum(jnp.where(jnp.any(odds_P > 0), latent, anywhere), M - 1)
        distance_P = jnp.sum((padded_PD - padded_PD[latent]) ** 2, axis=-1) * real_P
        return (
            codebook_ND.at[i].set(padded_PD[latent]),
            repeated_N.at[i].set(odds_P[latent] == 0),
            jnp.where(i == 0, distance_P, jnp.minimum(odds_P, distance_P)),
        )

    start = jnp.zeros((size, D)), jnp.zeros(size, bool), real_P
    codebook_ND, repeated_N, _ = jax.lax.fori_loop(0, size, add_entry, start)
    return codebook_ND + repeated_N[:, None] * _noise(noise_key, (size, D), latents_MD)


def _drawn(odds_N, share):
    """The index where the cumulative sum of the odds passes `share` (in [0, 1)) of their total."""
    total_N = jnp.cumsum(odds_N)
    found = jnp.searchsorted(total_N, share * total_N[-1], side="right")
    return jnp.minimum(found, odds_N.shape[0] - 1)


def _noise(key, shape, latents_MD):
    return REVIVAL_NOISE * jax.random.normal(key, shape) * jnp.std(latents_MD, axis=0)


# ----------------------------------------------------------------------------------- averages


class CodebookAverage(NamedTuple):
    """Moving averages that give a codebook without gradients.

    Attributes:
      counts_N: float32, latents per entry and batch.
      sums_ND: float32, the sums of these latents.
    """

    counts_N: jax.Array
    sums_ND: jax.Array


def start_average(codebook_ND: jax.Array) -> CodebookAverage:
    """As if every entry had been chosen once, by a latent equal to it."""
    codebook_ND = codebook_ND.astype(jnp.float32)
    return CodebookAverage(jnp.ones(codebook_ND.shape[0]), codebook_ND)


def update_average(
    average: CodebookAverage, latents: jax.Array, codes: jax.Array, decay: float
) -> CodebookAverage:
    """The average after one more batch.

    Van den Oord et al. 2017, appendix A.1; Razavi et al. 2019, equation 3.

    Args:
      average: before the batch.
      latents: float [..., D], in the space of the entries (on the unit sphere for cosine codes).
      codes: int [...], of these latents.
      decay: share of the old average, 0.99 in both papers.
    """
    latents_PD = latents.astype(jnp.float32).reshape(-1, latents.shape[-1])
    batch = CodebookAverage(*_totals(latents_PD, codes, average.counts_N.shape[0]))
    return jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, average, batch)


def averaged_codebook(average: CodebookAverage, eps: float = 1e-5) -> jax.Array:
    """The entries, float32 [N, D]: mean latents, with Laplace smoothing of the counts by `eps`.

    The smoothed counts (n_i + eps) / (n + N eps) * n sum to n as the counts do, and none is zero.
    1e-5 as in the authors' code (google-deepmind/sonnet, vqvae.py).
    """
    counts_N, sums_ND = average
    total = jnp.sum(counts_N)
    smoothed_N = (counts_N + eps) / (total + counts_N.shape[0] * eps) * total
    return sums_ND / smoothed_N[:, None]


def _totals(latents_PD, codes, size):
    """Latents of each code: how many [size], and their sum [size, D]."""
    sums_ND = jnp.zeros((size, latents_PD.shape[1]), jnp.float32).at[codes.reshape(-1)]
    return code_counts(codes, size), sums_ND.add(latents_PD)
