"""Requests one after the other, each of which may go on from where an earlier one ended.

What has been read stays in the cache, so that a request reads only what its prompt does not share
with those before it. This is `decoding.engine` for a document that grows: a conversation, or texts
and images in turns.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from emu3_jax import sharding
from emu3_jax.generate.decoding import engine, requests, scheduling
from emu3_jax.generate.decoding.requests import Request
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.generate.decoding.session import Session
from emu3_jax.interop.bundle import Bundle

# Tokens that the first cache has room for at least; each further one has room for twice as many.
LEAST_SLOTS = 512


class Continuing:
    """One request at a time, on the mesh that is set, with the cache of those before."""

    def __init__(
        self,
        bundle: Bundle,
        sampling: Sampling,
        masks: Sequence[np.ndarray],
        choices: int = 0,
        quantized_cache: bool = False,
    ):
        """Requests to a model.

        Args:
          bundle: the model.
          sampling: how their tokens are drawn.
          masks: the constraint masks that they may have, or longer ones of the same entries.
          choices: the most ids that an entry CHOICE of a mask allows.
          quantized_cache: as in `generate`.
        """
        self._quantized_cache = quantized_cache
        self._bundle, self._sampling = bundle, sampling
        self._masks, self._choices = list(masks), choices
        self._model, self._params = engine.fastest(bundle.model, bundle.variables["params"])
        self._session: Session | None = None

    def answer(
        self, request: Request, stream: Callable[[np.ndarray], None] | None = None
    ) -> np.ndarray:
        """The new tokens, int32 [n]; `request` has a number.

        `stream` is called with the next of them every few passes.

        Raises:
          ValueError: the request is malformed or longer than the context.
        """
        requests.check([request], self._bundle.vocab, self._bundle.max_context)
        if self._session is None or request.read > self._session.plan.slots:
            self._session = self._opened(request.read)
        found = []
        self._session.add(request)
        try:
            self._session.run(
                lambda at, tokens, passes, commits: found.append(tokens),
                None if stream is None else lambda at, tokens: stream(tokens),
            )
        except BaseException:  # the keyboard's too: the request is still in its row
            self._session = None
            raise
        return found[0]

    def _opened(self, needed: int) -> Session:
        """A session with room for a request that reads as many tokens, and for longer ones."""
        vocab, context = self._bundle.vocab, self._bundle.max_context
        slots = scheduling.bucket_power(needed, LEAST_SLOTS)
        slots = slots if context is None else min(slots, context)
        plan = scheduling.Plan(
            members=(),
            guided=self._sampling.guided,
            size=sharding.ways_of(jax.sharding.get_abstract_mesh(), "batch"),
            columns=max(map(len, self._masks)),
            slots=slots,
            longest_prompt=slots,
            choices=self._choices,
        )
        asked = vocab, plan, [], self._masks, self._sampling, self._quantized_cache
        return engine.open_session(self._model, self._params, *asked)
