"""From scores to one token: temperature, top-k, top-p, and a draw that depends on its row alone.

The filters agree with those of transformers, which the released inference code runs: the same
order, all ties with the k-th score kept, and the smallest set of tokens that reaches the mass p.
Every draw takes its randomness from (seed, request, offset), so a request's tokens do not depend
on the other rows of its batch.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
      temperature: scores are divided by it; 0 takes the best token (greedy).
      top_k: only the k best scores (and ties with the k-th) stay; 0 keeps all.
      top_p: only the smallest set of tokens whose probability reaches p stays; 1 keeps all.
      guidance: scale of classifier-free guidance; 1 switches it off and runs no second branch.
      seed: seed of all draws; the same seed and request give the same tokens.
      attend_negative_padding: the official scripts give the unconditional branch no attention mask.
        If negative prompts of a batch differ in length, the shorter ones attend to the padding
        before them. True does the same. False: padding is never attended to.
      whole_vocabulary: the official scripts put no constraint on texts, so an answer may contain
        control tokens and codes, which are left out when it is decoded. True does the same. False:
        texts are drawn from text tokens and EOS.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0
    seed: int = 0
    attend_negative_padding: bool = False
    whole_vocabulary: bool = False

    def __post_init__(self):
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be 0 (greedy) or positive, not {self.temperature}.")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or positive, not {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        if not (self.guidance >= 0 and math.isfinite(self.guidance)):
            raise ValueError(f"guidance must be at least 0 (1 is off), not {self.guidance}.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be from 0 to 4294967295, not {self.seed}.")

    @property
    def greedy(self) -> bool:
        """True when no randomness is used."""
        return self.temperature == 0

    @property
    def guided(self) -> bool:
        """True when a second, unconditional branch is computed."""
        return self.guidance != 1


def keep_top_k(scores_BV: jax.Array, k: int) -> jax.Array:
    """Sets every score below the k-th best of its row to -inf; ties with the k-th stay."""
    kth_B1 = kth_best(scores_BV, min(k, scores_BV.shape[-1]))
    return jnp.where(scores_BV < kth_B1, -jnp.inf, scores_BV)


def kth_best(scores_BV: jax.Array, k: int) -> jax.Array:
    """The k-th best score of each row, float32 [B, 1], exactly and without sorting.

    Bisection over the bits of the number: 32 passes that count, where `jax.lax.top_k` sorts, which
    for the 2,048 best of 32,768 takes as long as the layers of a small model. No score is NaN.
    """
    bits_BV = jax.lax.bitcast_convert_type(scores_BV.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    # Unsigned integers in the order of the numbers.
    order_BV = jnp.where(bits_BV & sign, ~bits_BV, bits_BV | sign)

    def add_bit(i: jax.Array, found_B1: jax.Array) -> jax.Array:
        larger_B1 = found_B1 | (sign >> i.astype(jnp.uint32))
        enough_B1 = (order_BV >= larger_B1).sum(axis=-1, keepdims=True) >= k
        return jnp.where(enough_B1, larger_B1, found_B1)

    none_B1 = jnp.zeros_like(order_BV[..., :1])
    found_B1 = jax.lax.fori_loop(0, 32, add_bit, none_B1)
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


def row_keys(seed_key: jax.Array, requests_B: jax.Array, offset: jax.Array) -> jax.Array:
    """One PRNG key per row from (seed, number of the request, offset of the token)."""
    fold = jax.vmap(lambda n: jax.random.fold_in(jax.random.fold_in(seed_key, n), offset))
    return fold(requests_B)


def draw(
    keys_B: jax.Array,
    scores_BV: jax.Array,
    temperature: jax.Array | float,
    top_p: jax.Array | float,
    *,
    greedy: bool,
    top_k: int,
    use_top_p: bool,
) -> jax.Array:
    """Draws one index per row, int32 [B]; the keyword arguments are static."""
    if greedy:
        return jnp.argmax(scores_BV, axis=-1).astype(jnp.int32)
    scores_BV = scores_BV / temperature
    if top_k:
        scores_BV = keep_top_k(scores_BV, top_k)
    if use_top_p:
        scores_BV = keep_top_p(scores_BV, top_p)
    return jax.vmap(jax.random.categorical)(keys_B, scores_BV).astype(jnp.int32)
