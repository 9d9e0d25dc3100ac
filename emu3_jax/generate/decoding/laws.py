"""From scores to one token: temperature, top-k, top-p, and a draw.

The filters agree with those of transformers, which the released inference code runs: the same
order, all ties with the k-th score kept, and the smallest set of tokens that reaches the mass p.

Functions take any dimensions before the last.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Candidates whose weights are summed first; a draw chooses a block, then one of it.
BLOCK = 256
# Candidates are counted in int8, at most 64 for each of 512 lanes: a CPU then adds more numbers at
# once, and is 2 to 4 times as fast as with int32.
COUNTED, LANES = 64, 512


class Filters(NamedTuple):
    """What decides how a law is computed: a change of any field compiles again."""

    greedy: bool
    top_k: int
    use_top_p: bool


def law(scores_BV: jax.Array, temperature, top_p, filters: Filters) -> jax.Array:
    """The law that a token is drawn from, after all filters: float32 [B, V], sums are 1."""
    if filters.greedy:
        return jax.nn.one_hot(scores_BV.argmax(axis=-1), scores_BV.shape[-1], dtype=jnp.float32)
    scores_BV = scores_BV / temperature
    if filters.top_k:
        scores_BV = keep_top_k(scores_BV, filters.top_k)
    if filters.use_top_p:
        scores_BV = keep_top_p(scores_BV, top_p)
    return jax.nn.softmax(scores_BV, axis=-1)


def keep_top_k(scores_BV: jax.Array, k: int) -> jax.Array:
    """Sets every score below the k-th best of its row to -inf; ties with the k-th stay."""
    kth_B1 = kth_best(scores_BV, min(k, scores_BV.shape[-1]))
    return jnp.where(scores_BV < kth_B1, -jnp.inf, scores_BV)


def kth_best(scores_BV: jax.Array, k: int) -> jax.Array:
    """The k-th best score of each row, float32 [B, 1], exactly and without sorting.

    Bisection over the bits of the number: 32 passes that count, where `jax.lax.top_k` sorts, which
    for the 2,048 best of 32,768 takes as long as the layers of a small model. No score is NaN.
    """
    candidates = scores_BV.shape[-1]
    bits_BV = jax.lax.bitcast_convert_type(scores_BV.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    # Unsigned integers in the order of the numbers.
    order_BV = jnp.where(bits_BV & sign, ~bits_BV, bits_BV | sign)
    # Padding is never counted: it is 0, below every number that is asked for.
    groups = math.ceil(candidates / (COUNTED * LANES))
    counted = math.ceil(candidates / (groups * LANES))
    padding = [(0, 0)] * (order_BV.ndim - 1) + [(0, -candidates % (groups * counted * LANES))]
    order_BGNL = jnp.pad(order_BV, padding).reshape(*order_BV.shape[:-1], groups, counted, LANES)

    def add_bit(i: jax.Array, found_B1: jax.Array) -> jax.Array:
        larger_B1 = found_B1 | (sign >> i.astype(jnp.uint32))
        count_BGL = (order_BGNL >= larger_B1[..., None, None]).sum(axis=-2, dtype=jnp.int8)
        enough_B1 = count_BGL.sum(axis=(-2, -1), dtype=jnp.int32)[..., None] >= k
        return jnp.where(enough_B1, larger_B1, found_B1)

    found_B1 = jax.lax.fori_loop(0, 32, add_bit, jnp.zeros_like(order_BV[..., :1]))
    bits_B1 = jnp.where(found_B1 & sign, found_B1 ^ sign, ~found_B1)
    return jax.lax.bitcast_convert_type(bits_B1, jnp.float32)


def keep_top_p(scores_BV: jax.Array, p: jax.Array | float) -> jax.Array:
    """Keeps the smallest set of each row whose softmax mass reaches p; sets the rest to -inf.

    The best token always stays. Ties are cut in index order, so the set is the smallest one.
    """
    order_BV = jnp.argsort(scores_BV, axis=-1, stable=True)
    ascending_BV = jnp.take_along_axis(scores_BV, order_BV, axis=-1)
    below_BV = jnp.cumsum(jax.nn.softmax(ascending_BV, axis=-1), axis=-1)
    drop_BV = (below_BV <= 1 - p).at[..., -1].set(False)
    drop_BV = jnp.put_along_axis(jnp.zeros_like(drop_BV), order_BV, drop_BV, -1, inplace=False)
    return jnp.where(drop_BV, -jnp.inf, scores_BV)


def uniforms(seed: jax.Array, count: int, *folded_B: jax.Array) -> jax.Array:
    """Numbers in [0, 1), float32 [B, count], each of a seed and of `folded_B` alone.

    Args:
      seed: uint32, a scalar or of the shape of those.
      count: numbers for each element.
      *folded_B: int32 arrays of one shape, such as the number of the request and the offset of the
        token; their order counts.
    """

    def one(seed, *folded):
        key = jax.random.key(seed)
        for number in folded:
            key = jax.random.fold_in(key, number)
        return jax.random.uniform(key, (count,))

    seed_B = jnp.broadcast_to(jnp.asarray(seed, jnp.uint32), folded_B[0].shape)
    flat = [x.reshape(-1) for x in (seed_B, *folded_B)]
    return jax.vmap(one)(*flat).reshape(*folded_B[0].shape, count)


def draw(weights_BV: jax.Array, uniform_B2: jax.Array) -> jax.Array:
    """Draws one index per row, int32 [B], with probabilities proportional to the weights.

    A block of `BLOCK` candidates is chosen by one uniform number and one of them by another, so a
    single pass over all candidates sums them, and no cumulative sum is long. A candidate of weight
    zero is never drawn, whatever the rounding.

    Args:
      weights_BV: not negative, with a positive sum.
      uniform_B2: two independent numbers in [0, 1).
    """
    candidates = weights_BV.shape[-1]
    padding = [(0, 0)] * (weights_BV.ndim - 1) + [(0, -candidates % BLOCK)]
    weights_BNK = jnp.pad(weights_BV, padding).reshape(*weights_BV.shape[:-1], -1, BLOCK)
    block_B = _inverse(weights_BNK.sum(axis=-1), uniform_B2[..., 0])
    weights_BK = jnp.take_along_axis(weights_BNK, block_B[..., None, None], axis=-2)[..., 0, :]
    return block_B * BLOCK + _inverse(weights_BK, uniform_B2[..., 1])


def coupled(
    p_BV: jax.Array, q_BV: jax.Array, index_B: jax.Array, uniform_B3: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Turns draws from laws q into draws from laws p that are the same as often as possible.

    A draw x is kept with probability min(1, p(x) / q(x)), and otherwise redrawn from
    max(0, p - q) / sum.

    Args:
      p_BV, q_BV: float32, sums are 1.
      index_B: int32, each drawn from its q.
      uniform_B3: three independent numbers in [0, 1): one for the test, two for the redraw.

    Returns:
      bool [B], whether each was kept, and int32 [B], the draws from p.
    """

    def of_draw(law_BV):
        return jnp.take_along_axis(law_BV, index_B[..., None], axis=-1)[..., 0]

    kept_B = uniform_B3[..., 0] * of_draw(q_BV) < of_draw(p_BV)
    rest_BV = jnp.maximum(p_BV - q_BV, 0)
    # Nothing is left where p = q up to rounding; then a draw is rejected by rounding alone.
    rest_BV = jnp.where(rest_BV.sum(axis=-1, keepdims=True) > 0, rest_BV, p_BV)
    return kept_B, jnp.where(kept_B, index_B, draw(rest_BV, uniform_B3[..., 1:]))


def _inverse(weights_BN: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """The first index whose cumulative weight exceeds the uniform share of the sum, int32 [B]."""
    reached_BN = jnp.cumsum(weights_BN, axis=-1)
    beyond_BN = reached_BN > uniform_B[..., None] * reached_BN[..., -1:]
    # A cumulative sum in parallel may grow by rounding where a weight is zero.
    possible_BN = weights_BN > 0
    found_BN = beyond_BN & possible_BN
    last_B = weights_BN.shape[-1] - 1 - jnp.argmax(possible_BN[..., ::-1], axis=-1)
    return jnp.where(found_BN.any(-1), jnp.argmax(found_BN, axis=-1), last_B).astype(jnp.int32)
