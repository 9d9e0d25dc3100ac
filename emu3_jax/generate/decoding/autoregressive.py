"""Autoregressive decoding: prefill, then one token per step, in one compiled function.

A `lax.while_loop` feeds each row its last token until every row is finished. The order is the
official one: guidance, constraint mask, temperature, top-k, top-p, draw.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emu3_jax import sharding
from emu3_jax.generate.decoding import constraints, guidance, sampling
from emu3_jax.models.language.attention import KVCache
from emu3_jax.models.language.transformer import Transformer, TransformerConfig, check_mesh
from emu3_jax.vocab import Vocab

# Columns of a prompt read at once. The largest array of a prefill is the float32 scores of one
# layer, heads x chunk x (slots + chunk) x 4 bytes per row: with the sizes of Emu3-Chat 0.6 GB for a
# prompt of 8,192 columns, against 18 GB if all are read at once. 512 are enough to fill the matrix
# units of an accelerator.
CHUNK = 512


class Static(NamedTuple):
    """Static arguments: a change of any field compiles again."""

    guided: bool
    greedy: bool
    top_k: int
    use_top_p: bool
    visual: bool
    text: bool
    whole_vocabulary: bool


class Inputs(NamedTuple):
    """One batch on the device; B requests, R rows (2 B when guided), P prompt columns, N new."""

    prompt_RP: jax.Array
    valid_RP: jax.Array
    mask_BN: jax.Array
    lengths_B: jax.Array
    guided_B: jax.Array
    numbers_B: jax.Array


class Settings(NamedTuple):
    """The numbers of `Sampling` that can change without a new compilation."""

    seed: jax.Array
    temperature: jax.Array
    top_p: jax.Array
    guidance: jax.Array


class State(NamedTuple):
    """What the loop carries from token to token."""

    step: jax.Array
    token_R: jax.Array
    position_R: jax.Array
    cache: KVCache
    new_BN: jax.Array
    finished_B: jax.Array


@functools.partial(jax.jit, static_argnames=("model", "vocab", "static"))
def decode(
    params, inputs: Inputs, settings: Settings, *, model: Transformer, vocab: Vocab, static
) -> jax.Array:
    """Runs one batch to its end.

    Args:
      params: of `model`.
      inputs: the batch.
      settings: how tokens are drawn.
      model, vocab: the transformer and its token space.
      static: the `Static` of this batch.

    Returns:
      The new tokens, int32 [B, N]; PAD after the end of each row.
    """
    state = prefill(params, inputs, model, vocab)
    last = inputs.mask_BN.shape[1]
    state = _loop(params, inputs, settings, state, last, model, vocab, static)
    return _readable(state).new_BN


@functools.partial(jax.jit, static_argnames=("model", "vocab"))
def start(params, inputs: Inputs, *, model: Transformer, vocab: Vocab) -> State:
    """The first half of `decode`, for callers that read tokens while they are generated."""
    return _readable(prefill(params, inputs, model, vocab))


@functools.partial(
    jax.jit, static_argnames=("model", "vocab", "static"), donate_argnames=("state",)
)
def advance(
    params, inputs: Inputs, settings: Settings, state: State, until, *, model, vocab, static
) -> State:
    """A part of the second half of `decode`: up to `until` new tokens, or to the end."""
    state = _loop(params, inputs, settings, state, until, model, vocab, static)
    return _readable(state)


def _loop(params, inputs: Inputs, settings: Settings, state: State, until, model, vocab, static):
    """Feeds one token per step until there are `until` or every row is finished."""
    key = jax.random.key(settings.seed)

    def draw(scores_BV, keys_B):
        return sampling.draw(
            keys_B,
            scores_BV,
            settings.temperature,
            settings.top_p,
            greedy=static.greedy,
            top_k=static.top_k,
            use_top_p=static.use_top_p,
        )

    def step(state: State) -> State:
        logits_R1V, cache = model.apply(
            {"params": params},
            state.token_R[:, None],
            state.position_R[:, None],
            state.cache,
            method="decode",
        )
        scores_BV = logits_R1V[:, 0]
        if static.guided:
            scores_BV = guidance.guide_interleaved(scores_BV, inputs.guided_B, settings.guidance)
        keys_B = sampling.row_keys(key, inputs.numbers_B, state.step)
        mask_B = jax.lax.dynamic_index_in_dim(inputs.mask_BN, state.step, 1, keepdims=False)
        mask_B = jnp.where(state.finished_B, vocab.pad, mask_B)
        code_B = (
            draw(constraints.visual_scores(scores_BV, vocab), keys_B) if static.visual else None
        )
        text_B = None
        if static.text:
            whole = static.whole_vocabulary
            text_B = draw(constraints.text_scores(scores_BV, mask_B, vocab, whole), keys_B)
            text_B = constraints.text_tokens(text_B, vocab, whole)
        token_B = constraints.choose(mask_B, code_B, text_B, vocab)
        ended_B = (token_B == vocab.eos) | (state.step + 1 >= inputs.lengths_B)
        return State(
            step=state.step + 1,
            token_R=jnp.repeat(token_B, 2) if static.guided else token_B,
            position_R=state.position_R + 1,
            cache=cache,
            new_BN=jax.lax.dynamic_update_index_in_dim(state.new_BN, token_B, state.step, 1),
            finished_B=state.finished_B | ended_B,
        )

    def is_unfinished(state: State) -> jax.Array:
        return (state.step < until) & ~state.finished_B.all()

    return jax.lax.while_loop(is_unfinished, step, state)


def _readable(state: State) -> State:
    """The state, with the arrays that the host reads replicated on every device."""
    return state._replace(
        new_BN=sharding.gathered(state.new_BN), finished_B=sharding.gathered(state.finished_B)
    )


def prefill(params, inputs: Inputs, model: Transformer, vocab: Vocab) -> State:
    """Reads all of each prompt but the last token, which the loop reads first."""
    prompt_RP = inputs.prompt_RP
    rows, columns = prompt_RP.shape
    positions_RP = jnp.cumsum(inputs.valid_RP, axis=1) - 1
    cache = allocate_cache(model.config, rows, columns - 1 + inputs.mask_BN.shape[1])
    cache = read_prompts(model, params, prompt_RP[:, :-1], positions_RP[:, :-1], cache)
    new_BN = jnp.full(inputs.mask_BN.shape, vocab.pad, jnp.int32)
    return State(
        step=jnp.zeros((), jnp.int32),
        token_R=prompt_RP[:, -1],
        position_R=positions_RP[:, -1],
        cache=cache,
        new_BN=sharding.constrain(new_BN, "batch", None),
        finished_B=inputs.lengths_B == 0,
    )


def read_prompts(
    model: Transformer, params, tokens_RP: jax.Array, positions_RP: jax.Array, cache: KVCache
) -> KVCache:
    """The cache with P more slots written, a chunk of columns at a time.

    The result equals that of one pass over all P.

    Args:
      model: the transformer.
      params: its parameters.
      tokens_RP: int32 [R, P], padded on the left; P is a power of two.
      positions_RP: int32 [R, P], as `Transformer.decode` takes them.
      cache: with P slots left.
    """
    rows, columns = tokens_RP.shape
    chunk = min(CHUNK, columns)

    def step(cache: KVCache, piece_2RC: jax.Array) -> tuple[KVCache, None]:
        _, cache = model.apply({"params": params}, *piece_2RC, cache, method="decode")
        return cache, None

    both_2RMC = jnp.stack([tokens_RP, positions_RP]).reshape(2, rows, columns // chunk, chunk)
    return jax.lax.scan(step, cache, jnp.moveaxis(both_2RMC, 2, 0))[0]


def cache_bytes(config: TransformerConfig, rows: int, slots: int) -> int:
    """Bytes of keys and values over all devices, for `rows` rows (two per guided request)."""
    numbers = config.num_layers * rows * slots * config.num_kv_heads * config.head_dim
    return 2 * numbers * jnp.dtype(config.dtype).itemsize


def allocate_cache(config: TransformerConfig, rows: int, slots: int) -> KVCache:
    """An empty cache in the type of the activations, sharded over the mesh that is set.

    Called inside jit, so that each device makes its own part and the decoding loop writes it in
    place. Rows are sharded over `data` and `fsdp`, heads over `tensor`. Slots are not, since every
    step writes one slot of all rows.
    """
    cache = KVCache.zeros(
        config.num_layers, rows, slots, config.num_kv_heads, config.head_dim, config.dtype
    )
    return cache._replace(
        k=sharding.constrain(cache.k, *KVCache.LOGICAL),
        v=sharding.constrain(cache.v, *KVCache.LOGICAL),
        valid=sharding.constrain(cache.valid, "batch", None),
    )


def lower(
    config: TransformerConfig,
    vocab: Vocab,
    mesh: jax.sharding.Mesh,
    *,
    requests: int,
    prompt: int,
    new: int,
    guided: bool = True,
) -> jax.stages.Lowered:
    """Ahead-of-time lowering of `decode`; needs neither weights nor prompts.

    This is what `engine.generate` runs for one batch of images or clips, top-k 2,048 as released.

    Args:
      config: of the model; weights are in its compute type.
      vocab: the token space.
      mesh: as in `engine.generate`.
      requests: number in the batch; the mesh axes of "batch" must divide it.
      prompt: tokens of the longest prompt.
      new: tokens of the longest answer.
      guided: with classifier-free guidance: two rows per request.

    Raises:
      ValueError: the model or the batch does not fit the mesh.
    """
    check_mesh(config, mesh)
    sharding.check_divides(mesh, "batch", "requests", requests)
    model = Transformer(config)
    rows = requests * (2 if guided else 1)
    here = jax.NamedSharding(mesh, sharding.partition_spec("batch"))

    def array(*shape, dtype=jnp.int32, layout=here):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=layout)

    def number(dtype=jnp.float32):
        return array(dtype=dtype, layout=sharding.replicated(mesh))

    inputs = Inputs(
        prompt_RP=array(rows, prompt),
        valid_RP=array(rows, prompt, dtype=bool),
        mask_BN=array(requests, new),
        lengths_B=array(requests),
        guided_B=array(requests, dtype=bool),
        numbers_B=array(requests),
    )
    settings = Settings(number(jnp.uint32), number(), number(), number())
    static = Static(guided, False, 2048, False, True, False, False)
    with jax.set_mesh(mesh):
        params = abstract_params(model, mesh)
        return decode.lower(params, inputs, settings, model=model, vocab=vocab, static=static)


def abstract_params(model: Transformer, mesh: jax.sharding.Mesh):
    """Abstract parameters in the model's compute type, sharded over `mesh`, which must be set."""
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    boxed = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), one)["params"]
    return sharding.abstract_arrays(boxed, mesh, model.config.dtype)
