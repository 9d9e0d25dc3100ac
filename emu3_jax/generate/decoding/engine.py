"""Answers to any mix of requests, batch by batch.

Prompts are padded on the left. A guided request takes two neighbouring rows, one per branch; both
get the token that is drawn. A constraint mask restricts each row (`constraints`), so images, clips
and captions share a batch. The code that runs on the device is in `autoregressive`.
"""

import contextlib
import time
from collections.abc import Callable

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from emu3_jax import compiling, sharding
from emu3_jax.generate.decoding import autoregressive, constraints
from emu3_jax.generate.decoding.autoregressive import Inputs, Settings, Static
from emu3_jax.generate.decoding.requests import Batch, Request, check, plan
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.models.language.transformer import Transformer, check_mesh
from emu3_jax.vocab import Vocab

# New tokens between two calls of `stream`. Each costs a round trip to the device.
STREAM_EVERY = 8


def generate(
    model: Transformer,
    params,
    requests: list[Request],
    settings: Sampling,
    vocab: Vocab,
    mesh: Mesh | None = None,
    *,
    batch_size: int = 16,
    max_context: int | None = None,
    progress: Callable[[str], None] | None = None,
    stream: Callable[[int, np.ndarray], None] | None = None,
) -> list[np.ndarray]:
    """Answers every request.

    On a mesh, rows are sharded over `data` and `fsdp`, key-value heads over `tensor`. With several
    processes, each must make the same call and gets all answers.

    Args:
      model: the transformer; `model.config.vocab_size` must be `vocab.size`.
      params: its parameters, boxed or not, sharded over the mesh if there is one.
      requests: any number, of any lengths and kinds.
      settings: how tokens are drawn. With `guidance` other than 1, requests that have a negative
        prompt are guided; the others in the same call are not.
      vocab: the token space.
      mesh: where to run; None: the mesh that is set (`jax.set_mesh`), or the default device.
      batch_size: the most requests that run together; guided ones take two rows each.
      max_context: the most tokens that the model may read: the prompt and all of the answer
        but its last token; None for no limit.
      progress: called with one line before and after each batch.
      stream: called as stream(position in the list, new tokens int32 [n]) every `STREAM_EVERY`
        tokens while a batch runs; the pieces of a request together are its answer.

    Returns:
      For each request, in order, int32 [n]: the new tokens, n <= max_new. If EOS was drawn, it is
      the last of them.

    Raises:
      ValueError: a request is malformed or longer than the context; raised before any work.
    """
    if model.config.vocab_size != vocab.size:
        raise ValueError(
            f"The model has {model.config.vocab_size} token ids, the vocabulary {vocab.size}."
        )
    check(requests, vocab, max_context)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        here = jax.sharding.get_abstract_mesh()
        if not here.empty:
            check_mesh(model.config, here)
        params = nn.meta.unbox(params)
        answers: list = [None] * len(requests)
        batches = plan(requests, batch_size, sharding.ways_of(here, "batch"))
        for i, batch in enumerate(batches):
            report = _reporter(model, batch, settings, f"batch {i + 1}/{len(batches)}", progress)
            new_BN, is_new = _run(model, params, requests, batch, settings, vocab, stream)
            for row, member in zip(new_BN, batch.members, strict=False):
                answers[member] = _cut(row, requests[member].new, vocab)
            report(sum(len(answers[member]) for member in batch.members), is_new)
    return answers


def _run(
    model, params, requests, batch: Batch, settings: Sampling, vocab, stream
) -> tuple[np.ndarray, bool]:
    """The new tokens of one batch, int32 [B, N] on the host; whether a program was compiled."""
    inputs = _inputs(requests, batch, settings, vocab)
    mask = inputs.mask_BN
    static = Static(
        guided=len(inputs.prompt_RP) > len(mask),
        greedy=settings.greedy,
        top_k=0 if settings.greedy else settings.top_k,
        use_top_p=not settings.greedy and settings.top_p < 1,
        visual=bool((mask == constraints.VISUAL).any()),
        text=bool(np.isin(mask, (constraints.TEXT, constraints.WORD)).any()),
        whole_vocabulary=settings.whole_vocabulary,
    )
    numbers = Settings(
        seed=np.uint32(settings.seed),
        temperature=np.float32(settings.temperature),
        top_p=np.float32(settings.top_p),
        guidance=np.float32(settings.guidance),
    )
    inputs = jax.tree.map(lambda array: sharding.spread(array, "batch"), inputs)
    compiled = dict(model=model, vocab=vocab, static=static)
    here, shapes = jax.sharding.get_abstract_mesh(), (inputs.prompt_RP.shape, mask.shape)
    program = (model, vocab, static, stream is None, here, shapes)
    is_new = compiling.announce(program, f"sampling {mask.shape[1]} tokens in {len(mask)} rows")
    if stream is None:
        return np.asarray(autoregressive.decode(params, inputs, numbers, **compiled)), is_new
    state = autoregressive.start(params, inputs, model=model, vocab=vocab)
    shown, steps = 0, mask.shape[1]
    while shown < steps and not np.asarray(state.finished_B).all():
        until = min(shown + STREAM_EVERY, steps)
        state = autoregressive.advance(params, inputs, numbers, state, until, **compiled)
        new_BN = np.asarray(state.new_BN)
        for row, member in zip(new_BN, batch.members, strict=False):
            answer = _cut(row[:until], requests[member].new, vocab)
            if len(answer) > shown:
                stream(member, answer[shown:])
        shown = until
    return np.asarray(state.new_BN), is_new


def _inputs(requests: list[Request], batch: Batch, settings: Sampling, vocab: Vocab) -> Inputs:
    """The members of a batch as arrays; the rows after them have nothing to generate."""
    members = [requests[i] for i in batch.members]
    has_negative = np.zeros(batch.rows, bool)
    has_negative[: len(members)] = [r.negative is not None for r in members]
    guided = settings.guided and bool(has_negative.any())
    prompt_BP = np.full((batch.rows, batch.prefill + 1), vocab.pad, np.int32)
    prompt_BP[:, -1] = vocab.bos
    negative_BP = prompt_BP.copy()
    # By length, not by id: a prompt may contain PAD (`Grammar.special_names`).
    valid_BP = np.zeros(prompt_BP.shape, bool)
    valid_BP[:, -1] = True
    negative_valid_BP = valid_BP.copy()
    for b, request in enumerate(members):
        prompt_BP[b, -len(request.prompt) :] = request.prompt
        valid_BP[b, -len(request.prompt) :] = True
        # Without a negative prompt the second row repeats the first and its result is not used.
        negative = request.prompt if request.negative is None else request.negative
        negative_BP[b, -len(negative) :] = negative
        negative_valid_BP[b, -len(negative) :] = True
    if settings.attend_negative_padding:
        longest = max((len(r.negative) for r in members if r.negative is not None), default=1)
        negative_valid_BP[has_negative, -longest:] = True
    lengths = np.zeros(batch.rows, np.int32)
    lengths[: len(members)] = [r.new for r in members]
    numbers = np.zeros(batch.rows, np.int32)
    numbers[: len(members)] = [
        position if r.number is None else r.number
        for position, r in zip(batch.members, members, strict=True)
    ]
    mask = constraints.mask([r.mask for r in members], batch.rows, batch.new, vocab.pad)
    if guided:
        prompt_BP = np.stack([prompt_BP, negative_BP], axis=1).reshape(-1, prompt_BP.shape[1])
        valid_BP = np.stack([valid_BP, negative_valid_BP], axis=1).reshape(prompt_BP.shape)
    return Inputs(prompt_BP, valid_BP, mask, lengths, has_negative, numbers)


def _cut(row: np.ndarray, longest: int, vocab: Vocab) -> np.ndarray:
    """The row up to and including its EOS, or its first `longest` tokens."""
    row = row[:longest]
    ends = np.flatnonzero(row == vocab.eos)
    return row[: ends[0] + 1] if len(ends) else row


def _reporter(model, batch: Batch, settings: Sampling, name: str, progress):
    """Reports the size of a batch; returns a function that reports the speed of its tokens."""
    if progress is None:
        return lambda tokens, is_new: None
    branches = 2 if settings.guided else 1
    size = autoregressive.cache_bytes(model.config, batch.rows * branches, batch.capacity)
    progress(
        f"{name}: {len(batch.members)} requests in {batch.rows} rows"
        f"{' x 2 branches' if settings.guided else ''}, prompts up to {batch.prefill + 1} tokens, "
        f"{batch.new} new, cache {size / 2**20:.1f} MiB"
    )
    start = time.perf_counter()

    def done(tokens: int, is_new: bool) -> None:
        seconds = time.perf_counter() - start
        progress(
            f"{name}: {tokens} tokens in {seconds:.1f} s, {tokens / seconds:.0f} tokens per second"
            + (" with compiling" if is_new else "")
        )

    return done
