"""One thread that owns a model, and answers the requests of any number of others.

Those that need the same programs share the rows of a batch, whatever their seeds, temperatures and
scales of guidance, and whenever they come: a session takes a request as soon as a row of it is
free. Sessions of different programs take turns, a few passes each. What else needs the model, such
as decoding an image, runs between two turns (`call`).
"""

import contextlib
import dataclasses
import logging
import queue
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from emu3_jax import sharding
from emu3_jax.generate.decoding import engine, scheduling
from emu3_jax.generate.decoding.requests import CancelledError, Request, check
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.generate.decoding.session import Session
from emu3_jax.interop.bundle import Bundle
from emu3_jax.models.language.transformer import check_mesh

log = logging.getLogger(__name__)

# The smallest room of a session, in tokens. Others are twice as large, up to the model's context.
LEAST_SLOTS = 512
# Seconds between two looks at whether a request is still wanted.
PATIENCE = 0.1


@dataclasses.dataclass(eq=False)
class _Asked:
    """Requests of one call: positions that are not yet answered, and what came of them.

    Attributes:
      requests: with their numbers.
      settings: how they are drawn.
      told: (position, new tokens, whether the answer is then complete), or an exception.
      places: position → (key of the session, position there).
    """

    requests: Sequence[Request]
    settings: Sampling
    told: queue.SimpleQueue = dataclasses.field(default_factory=queue.SimpleQueue)
    places: dict[int, tuple[Hashable, int]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False)
class _Running:
    """A session, and whose requests it has: position there → (call, position there)."""

    session: Session
    owners: dict[int, tuple[_Asked, int]] = dataclasses.field(default_factory=dict)


class Serving:
    """The thread, and how others ask it. `with` ends it."""

    def __init__(
        self,
        bundle: Bundle,
        rows: int = 8,
        quantized_cache: bool = False,
        mesh: jax.sharding.Mesh | None = None,
    ):
        """Starts the thread.

        Args:
          bundle: the model.
          rows: requests of a session that run at once; the mesh rounds them up.
          quantized_cache: as in `engine.generate`.
          mesh: where the model is; None: one device.

        Raises:
          ValueError: the model does not fit the mesh.
        """
        if mesh is not None:
            check_mesh(bundle.model.config, mesh)
        self._bundle, self._quantized, self._mesh = bundle, quantized_cache, mesh
        self._model, self._params = engine.fastest(bundle.model, bundle.variables["params"])
        ways = 1 if mesh is None else sharding.ways_of(mesh, "batch")
        self.rows = -(-rows // ways) * ways
        self._inbox: queue.SimpleQueue = queue.SimpleQueue()
        self._running: dict[Hashable, _Running] = {}
        self._thread = threading.Thread(target=self._serve, name="model", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Serving":
        return self

    def __exit__(self, *error) -> None:
        self._inbox.put(None)
        self._thread.join()

    # What others call.

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function that needs the model, run on its thread between two turns."""
        future: Future = Future()

        def run() -> None:
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)

        self._inbox.put(run)
        return future.result()

    def generate(
        self,
        requests: Sequence[Request],
        settings: Sampling,
        stream: Callable[[int, np.ndarray], None] | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> list[np.ndarray]:
        """As `engine.generate`, together with the requests of other threads.

        `stream` and `cancel` are called on the thread of the caller.
        """
        bundle = self._bundle
        check(requests, bundle.vocab, bundle.max_context, settings.window)
        asked = _Asked(engine.prepared(requests, settings, bundle.vocab), settings)
        answers: dict[int, list[np.ndarray]] = {at: [] for at in range(len(requests))}
        left = set(answers)
        self._inbox.put(lambda: self._begin(asked))
        while left:
            told = None
            with contextlib.suppress(queue.Empty):
                told = asked.told.get(timeout=PATIENCE)
            if isinstance(told, Exception):
                raise told
            if told is not None:
                at, tokens, is_complete = told
                answers[at].append(tokens)
                if is_complete:
                    left.remove(at)
                if stream is not None and len(tokens):
                    stream(at, tokens)
            if left and cancel is not None and cancel():
                self._inbox.put(lambda: self._leave(asked))
                done = {at: np.concatenate(answers[at]) for at in answers if at not in left}
                raise CancelledError(done, len(requests))
        return [np.concatenate(pieces) for pieces in answers.values()]

    # What the thread does.

    def _serve(self) -> None:
        with contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
            while True:
                while self._running and self._inbox.empty():
                    self._turn()
                task = self._inbox.get()
                if task is None:
                    break
                task()
            for running in self._running.values():
                for asked, _ in running.owners.values():
                    asked.told.put(CancelledError({}, len(asked.requests)))

    def _turn(self) -> None:
        """A few passes of each session."""
        for key, running in list(self._running.items()):

            def stream(at: int, tokens: np.ndarray, running: _Running = running) -> None:
                asked, position = running.owners[at]
                asked.told.put((position, tokens, False))

            def answer(at: int, tokens, passes, commits, running: _Running = running) -> None:
                asked, position = running.owners.pop(at)
                del asked.places[position]
                asked.told.put((position, tokens[:0], True))

            try:
                running.session.advance(answer, stream)
            except Exception as error:
                log.exception("a session failed")
                for asked, _ in running.owners.values():
                    asked.told.put(error)
                running.owners.clear()
            if not running.owners:
                del self._running[key]

    def _begin(self, asked: _Asked) -> None:
        """Puts requests into sessions."""
        try:
            for position, request in enumerate(asked.requests):
                key, running = self._session(request, asked.settings)
                at = running.session.add(request, engine.numbers_of(asked.settings))
                running.owners[at] = asked, position
                asked.places[position] = key, at
        except Exception as error:
            log.exception("a session could not begin")
            self._leave(asked)
            asked.told.put(error)

    def _leave(self, asked: _Asked) -> None:
        """Takes what is left of a call out of its sessions."""
        for key, at in asked.places.values():
            running = self._running.get(key)
            if running is not None and running.owners.pop(at, None):
                running.session.drop(at)
                if not running.owners:
                    del self._running[key]
        asked.places.clear()

    def _session(self, request: Request, settings: Sampling) -> tuple[Hashable, _Running]:
        """The session for a request, and its key."""
        guided = settings.guided and request.negative is not None
        slots = scheduling.bucket_power(request.read, LEAST_SLOTS)
        slots = min(slots, self._bundle.max_context or slots)
        plan = scheduling.Plan(
            members=(),
            guided=guided,
            size=self.rows,
            columns=scheduling.bucket_power(request.new),
            slots=slots,
            longest_prompt=slots,
            choices=len(request.choices),
        )
        programs = engine.programs([request.mask], settings, guided)
        key = (plan, programs)
        if key not in self._running:
            model = self._model, self._params, self._bundle.vocab
            masks = [request.mask]
            session = engine.open_session(*model, plan, [], masks, settings, self._quantized)
            self._running[key] = _Running(session)
        return key, self._running[key]
