"""Answers to any mix of requests.

Requests of one kind share a batch, in which a finished one makes room for the next (`session`). A
guided request takes two neighbouring rows, one per branch; both get the token that is drawn. A
constraint mask restricts each answer (`constraints`). How many tokens a forward pass commits is up
to the decoder (`decoders`).
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from emu3_jax import compiling, sharding
from emu3_jax.generate.decoding import constraints, scheduling
from emu3_jax.generate.decoding.decoders import registry
from emu3_jax.generate.decoding.decoders.decoder import Decoder
from emu3_jax.generate.decoding.laws import Filters
from emu3_jax.generate.decoding.reader import Kind, Numbers
from emu3_jax.generate.decoding.requests import CancelledError, Request, check
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.generate.decoding.scheduling import Plan
from emu3_jax.generate.decoding.session import Session
from emu3_jax.models import cpu, gpu
from emu3_jax.models.language.kv_cache import cache_bytes
from emu3_jax.models.language.transformer import Transformer, check_mesh, unscanned
from emu3_jax.progress import Progress
from emu3_jax.vocab import Vocab


@dataclasses.dataclass(frozen=True)
class Answer:
    """What became of a request.

    Attributes:
      tokens: int32 [n], the new tokens, n <= max_new. If EOS was drawn, it is the last of them.
      passes: forward passes that it took.
      commits: int32 [W], how many of them committed 1, 2, … W tokens.
    """

    tokens: np.ndarray
    passes: int
    commits: np.ndarray


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
    quantized_cache: bool = False,
    progress: Callable[[str], None] | None = None,
    stream: Callable[[int, np.ndarray], None] | None = None,
    cancel: Callable[[], bool] | None = None,
) -> list[np.ndarray]:
    """Answers every request.

    On a mesh, rows are sharded over `data` and `fsdp`, key-value heads over `tensor`. With several
    processes, each must make the same call and gets all answers.

    Args:
      model: the transformer; `model.config.vocab_size` must be `vocab.size`.
      params: its parameters, boxed or not, sharded over the mesh if there is one. Kernels of the
        layers may be int8 (`models.language.int8`).
      requests: any number, of any lengths and kinds.
      settings: how tokens are drawn. With `guidance` other than 1, requests that have a negative
        prompt are guided; the others in the same call are not.
      vocab: the token space.
      mesh: where to run; None: the mesh that is set (`jax.set_mesh`), or the default device.
      batch_size: the most requests that run together; guided ones take two rows each.
      max_context: the most tokens that the model may read: the prompt and all of the answer
        but its last token; None for no limit.
      quantized_cache: keys and values are kept as int8, with a scale for each head of each token.
      progress: called with a line before and after each kind of requests, and every few
        seconds in between (`Progress`).
      stream: called as stream(position in the list, new tokens int32 [n]) every few tokens while
        requests run; the pieces of a request together are its answer.
      cancel: asked every few tokens; True ends the call. Several processes must be told the same.

    Returns:
      For each request, in order, int32 [n]: the new tokens, n <= max_new. If EOS was drawn, it is
      the last of them.

    Raises:
      ValueError: a request is malformed or longer than the context; raised before any work.
      CancelledError: `cancel` said so; it carries the answers that are finished.
    """
    limits = dict(batch_size=batch_size, max_context=max_context, quantized_cache=quantized_cache)
    calls = dict(progress=progress, stream=stream, cancel=cancel)
    found = answers(model, params, requests, settings, vocab, mesh, **limits, **calls)
    return [answer.tokens for answer in found]


def answers(
    model: Transformer,
    params,
    requests: list[Request],
    settings: Sampling,
    vocab: Vocab,
    mesh: Mesh | None = None,
    *,
    batch_size: int = 16,
    max_context: int | None = None,
    quantized_cache: bool = False,
    progress: Callable[[str], None] | None = None,
    stream: Callable[[int, np.ndarray], None] | None = None,
    cancel: Callable[[], bool] | None = None,
) -> list[Answer]:
    """As `generate`, with what each answer took."""
    if model.config.vocab_size != vocab.size:
        raise ValueError(
            f"The model has {model.config.vocab_size} token ids, the vocabulary {vocab.size}."
        )
    check(requests, vocab, max_context, settings.window)
    if not requests:
        return []
    requests = prepared(requests, settings, vocab)
    found: list = [None] * len(requests)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        here = jax.sharding.get_abstract_mesh()
        if not here.empty:
            check_mesh(model.config, here)
        model, params = fastest(model, params)
        shards = sharding.ways_of(here, "batch")
        todo = scheduling.plans(requests, settings.guided, batch_size, shards)
        for i, plan in enumerate(todo):
            name = f"batch {i + 1}/{len(todo)}"
            members = [requests[i] for i in plan.members]
            masks = [request.mask for request in members]
            session = open_session(
                model, params, vocab, plan, members, masks, settings, quantized_cache
            )
            report = _Reporter(session, name, progress)

            def answer(at: int, tokens, passes: int, commits, plan=plan, report=report) -> None:
                found[plan.members[at]] = Answer(tokens, passes, commits)
                report.finished(1)

            def show(at: int, tokens: np.ndarray, plan: Plan = plan) -> None:
                stream(plan.members[at], tokens)

            if not session.run(answer, show if stream else None, cancel):
                done = {i: one.tokens for i, one in enumerate(found) if one is not None}
                raise CancelledError(done, len(requests))
            report.end(sum(len(found[member].tokens) for member in plan.members))
    return found


def prepared(requests: list[Request], settings: Sampling, vocab: Vocab) -> list[Request]:
    """The requests with their numbers, and with negative prompts as the settings want them."""
    longest = max((len(r.negative) for r in requests if r.negative is not None), default=0)
    found = []
    for position, request in enumerate(requests):
        negative = request.negative if settings.guided else None
        if negative is not None and settings.attend_negative_padding:
            padding = np.full(longest - len(negative), vocab.pad, np.int32)
            negative = np.concatenate([padding, negative])
        number = position if request.number is None else request.number
        found.append(dataclasses.replace(request, negative=negative, number=number))
    return found


def fastest(model: Transformer, params) -> tuple[Transformer, Any]:
    """The model and its parameters, unboxed, as they decode fastest where they are."""
    params = nn.meta.unbox(params)
    listed = cpu.unscanned_layers(params) or gpu.unscanned_layers(params)
    return unscanned(model, params) if listed else (model, params)


def open_session(
    model: Transformer,
    params,
    vocab: Vocab,
    plan: Plan,
    requests: list[Request],
    masks: Sequence[np.ndarray],
    settings: Sampling,
    quantized_cache: bool = False,
) -> Session:
    """A session, and what its programs are compiled for; `masks` are all that its requests have."""
    decoder, kind = programs(masks, settings, plan.guided)
    numbers = numbers_of(settings)
    return Session(model, params, vocab, plan, requests, decoder, kind, numbers, quantized_cache)


def programs(masks: Sequence[np.ndarray], settings: Sampling, guided: bool) -> tuple[Decoder, Kind]:
    """What the programs of a session are compiled for."""
    entries = np.unique(np.concatenate(masks))
    decoder = registry.make(settings.decoder, settings.window).fitted(masks)
    filters = Filters(
        greedy=settings.greedy,
        top_k=0 if settings.greedy else settings.top_k,
        use_top_p=not settings.greedy and settings.top_p < 1,
    )
    kind = Kind(
        guided=guided,
        visual=constraints.VISUAL in entries,
        text=bool(np.isin(entries, constraints.TEXTS).any()),
        whole_vocabulary=settings.whole_vocabulary,
        filters=filters,
    )
    return decoder, kind


def numbers_of(settings: Sampling) -> Numbers:
    """The numbers of one request."""
    return Numbers(
        np.uint32(settings.seed),
        np.float32(settings.temperature),
        np.float32(settings.top_p),
        np.float32(settings.guidance),
    )


class _Reporter:
    """Reports the size of a session, what it has finished, and the speed of its tokens."""

    def __init__(self, session: Session, name: str, progress: Callable[[str], None] | None):
        self._name, self._say = name, progress or (lambda line: None)
        plan, branches = session.plan, session.branches
        size = cache_bytes(
            session.model.config, plan.size * branches, session.slots, session.quantized
        )
        count, throttled = len(plan.members), Progress(progress)
        throttled.line(
            f"{name}: {count} requests in {plan.size} rows"
            f"{' x 2 branches' if branches == 2 else ''}, up to {plan.slots} tokens, "
            f"{plan.columns} new, cache {size / 2**20:.1f} MiB"
        )
        # Called with the number of requests just answered.
        self.finished = throttled.counter(f"{name}, requests answered", count)
        self._compiled, self._known = compiling.seconds(), compiling.programs()
        self._start = time.perf_counter()

    def end(self, tokens: int) -> None:
        """Reports the speed of all tokens."""
        spent, count = time.perf_counter() - self._start, compiling.programs() - self._known
        seconds = spent - (compiling.seconds() - self._compiled)
        self._say(
            f"{self._name}: {tokens} tokens in {seconds:.1f} s, {tokens / seconds:.0f} tokens per "
            f"second" + (f" beside compiling {count} programs" if count else "")
        )
