"""The programs that run on the device: reading prompts, copying them, and the decoding loop.

Each leaves the cache in place (it is donated) and is compiled once for every number of slots that
are read; see `scheduling.live_slots`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from emu3_jax.generate.decoding.decoders.decoder import Decoder
from emu3_jax.generate.decoding.reader import Kind, Numbers, Reader
from emu3_jax.generate.decoding.rows import Rows, State
from emu3_jax.models.language import int8
from emu3_jax.models.language.kv_cache import KVCache
from emu3_jax.models.language.transformer import Transformer, TransformerConfig
from emu3_jax.vocab import Vocab


@functools.partial(jax.jit, static_argnames=("config", "rows", "slots", "quantized"))
def allocate(*, config: TransformerConfig, rows: int, slots: int, quantized: bool) -> KVCache:
    """An empty cache; each device makes its own part."""
    return KVCache.zeros(config, rows, slots, quantized)


@functools.partial(jax.jit, static_argnames=("model", "live"), donate_argnames=("cache",))
def read_prompts(
    params, cache: KVCache, index_GN, tokens_GNT, starts_GN, counts_GN, *, model, live: int
) -> KVCache:
    """Reads a piece of the prompts of some rows.

    Args:
      params: of the model.
      cache: of R rows, in G groups (see `KVCache.take`).
      index_GN: int32, the rows, counted within their group.
      tokens_GNT: int32, T tokens for each.
      starts_GN: int32, their first positions.
      counts_GN: int32, how many of the T are tokens; the others are padding.
      model: the transformer.
      live: slots that are read; every start is at most this.
    """
    length = tokens_GNT.shape[-1]
    tokens_RT = tokens_GNT.reshape(-1, length)
    starts_R, counts_R = starts_GN.reshape(-1), counts_GN.reshape(-1)
    within_T = jnp.arange(length)
    positions_RT = jnp.where(within_T < counts_R[:, None], starts_R[:, None] + within_T, -1)
    written_RC = jnp.arange(live) < starts_R[:, None]
    part = cache.take(index_GN, live)
    with int8.reading():
        _, new = model.apply(
            {"params": params}, tokens_RT, positions_RT, part, written_RC, method="read"
        )
    # A row that is only there to fill up a group writes where no token is.
    return cache.put(new, index_GN, jnp.where(counts_GN > 0, starts_GN, cache.slots - length))


@functools.partial(jax.jit, static_argnames=("live",), donate_argnames=("cache",))
def copy_prompts(cache: KVCache, from_GN, to_GN, *, live: int) -> KVCache:
    """Copies the first `live` slots of some rows to others of their group; indices as above."""
    return cache.put(cache.take(from_GN, live), to_GN, jnp.zeros_like(to_GN))


@functools.partial(
    jax.jit,
    static_argnames=("model", "vocab", "decoder", "kind", "live"),
    donate_argnames=("cache", "drafts"),
)
def advance(
    params,
    cache: KVCache,
    drafts: Any,
    rows: Rows,
    is_fresh_B: jax.Array,
    numbers: Numbers,
    passes: jax.Array,
    enough: jax.Array,
    *,
    model: Transformer,
    vocab: Vocab,
    decoder: Decoder,
    kind: Kind,
    live: int,
) -> tuple[KVCache, Any, Rows]:
    """The decoding loop, until `enough` rows are finished or a row needs more slots.

    Args:
      params: of the model.
      cache: with the prompts of all rows but their last tokens.
      drafts: what the decoder keeps from pass to pass; None the first time.
      rows: the requests.
      is_fresh_B: bool, rows that have a new request since the last call.
      numbers: how tokens are drawn.
      passes: int32, the most forward passes.
      enough: int32, number of finished rows after which the loop ends.
      model, vocab, decoder, kind: what the program is compiled for.
      live: slots that a pass reads.

    Returns:
      The cache, the drafts and the rows.
    """
    reader = Reader(model, params, vocab, kind, numbers, live)
    fresh = decoder.begin(reader, rows)
    if drafts is not None:
        fresh = jax.tree.map(functools.partial(_where_rows, is_fresh_B), fresh, drafts)

    def is_going(loop: tuple[State, jax.Array]) -> jax.Array:
        state, count = loop
        rows = state.rows
        needed_R = rows.first_positions() + rows.per_branch(decoder.reach(rows))
        fits_R = (needed_R <= live) | rows.per_branch(rows.finished_B)
        return (count < passes) & (rows.finished_B.sum() < enough) & fits_R.all()

    def one_pass(loop: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
        state, count = loop
        return decoder.step(reader, state), count + 1

    state = State(cache, rows, fresh)
    state, _ = jax.lax.while_loop(is_going, one_pass, (state, jnp.zeros((), jnp.int32)))
    return state.cache, state.drafts, state.rows.gathered()


def _where_rows(is_B: jax.Array, x_B: jax.Array, y_B: jax.Array) -> jax.Array:
    return jnp.where(is_B.reshape(-1, *(1,) * (x_B.ndim - 1)), x_B, y_B)
