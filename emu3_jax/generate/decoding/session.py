"""Requests that take turns in the rows of one batch: as soon as one is finished, the next begins.

The cache stays on the device; all else that a row has is small, and is changed on the host between
two calls of the loop. Tokens that a row has read stay valid when its request is finished, so a new
request that begins as they do, in this row or in another, copies them instead of reading them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from emu3_jax import compiling, sharding
from emu3_jax.generate.decoding import device, scheduling
from emu3_jax.generate.decoding.decoders.decoder import Decoder
from emu3_jax.generate.decoding.reader import Kind, Numbers
from emu3_jax.generate.decoding.requests import Request
from emu3_jax.generate.decoding.rows import Rows, empty
from emu3_jax.generate.decoding.scheduling import Plan
from emu3_jax.models.language.transformer import Transformer
from emu3_jax.vocab import Vocab

# Passes between two looks at the rows if someone reads the tokens while they are generated, or may
# stop it.
STREAM_EVERY = 8


class Session:
    """The rows of one plan."""

    def __init__(
        self,
        model: Transformer,
        params,
        vocab: Vocab,
        plan: Plan,
        requests: Sequence[Request],
        decoder: Decoder,
        kind: Kind,
        numbers: Numbers,
        quantized_cache: bool = False,
    ):
        """See `generate`; `requests` are those of the plan, each with its number.

        `decoder` is fitted to the masks of all of them, and of those that are added later.
        `numbers` are those of each request, and of one that is added without others.
        """
        self.model, self.params, self.vocab, self.plan = model, params, vocab, plan
        self.kind, self.numbers, self.quantized = kind, numbers, quantized_cache
        # By position, with the numbers by which each is drawn.
        self.requests = {at: (request, numbers) for at, request in enumerate(requests)}
        self._added = len(self.requests)
        self.decoder = decoder
        self.shards = sharding.ways_of(jax.sharding.get_abstract_mesh(), "batch")
        self.branches = 2 if kind.guided else 1
        spare = plan.longest_prompt, self.decoder.width
        self.slots = scheduling.allocated(plan.slots, *spare)
        self.occupants: list[int | None] = [None] * plan.size
        self.waiting = list(range(len(self.requests)))[::-1]
        self._shown = [0] * plan.size
        self._held: list[np.ndarray] = [np.zeros(0, np.int32)] * (plan.size * self.branches)
        schedule = decoder.schedule(np.zeros(0, np.int32), plan.columns)
        sizes = dict(branches=self.branches, width=decoder.width, pad=vocab.pad)
        self._rows = empty(plan.size, plan.columns, plan.choices, schedule, **sizes)
        self._numbers = Numbers(*(np.full(plan.size, x) for x in numbers))
        self._drafts = None
        self._cache = None

    @property
    def state(self) -> tuple[Rows, Any]:
        """The rows, and what the decoder keeps from pass to pass, for those who look on."""
        return self._rows, self._drafts

    @property
    def is_busy(self) -> bool:
        """Whether requests wait or are in rows."""
        return bool(self.requests)

    def add(self, request: Request, numbers: Numbers | None = None) -> int:
        """One more request; it must fit the plan, the kind and the decoder. Returns its position.

        `numbers` are those by which it is drawn; None: those of the session.
        """
        at = self._added
        self._added += 1
        self.requests[at] = request, self.numbers if numbers is None else numbers
        self.waiting.insert(0, at)
        return at

    def drop(self, at: int) -> None:
        """Leaves the request at a position without an answer; its row is free for the next."""
        if at in self.waiting:
            self.waiting.remove(at)
            del self.requests[at]
            return
        b = self.occupants.index(at)
        finished_B = np.array(self._rows.finished_B)
        finished_B[b] = True
        self._rows = self._rows._replace(finished_B=finished_B)
        self._release(b, self._rows.new_BN[b, : self._rows.step_B[b]])

    def run(
        self,
        answer: Callable[[int, np.ndarray, int, np.ndarray], None],
        stream: Callable[[int, np.ndarray], None] | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> bool:
        """Answers all requests.

        Args:
          answer: called as answer(position, tokens int32 [n], forward passes, how many of them
            committed 1, 2, … tokens) when a request is finished.
          stream: called as stream(position, new tokens) every few passes.
          cancel: asked every few passes; True leaves the requests that are not finished.

        Returns:
          Whether all requests are finished.
        """
        passes = STREAM_EVERY if stream or cancel else None
        while self.is_busy:
            if cancel is not None and cancel():
                return False
            self.advance(answer, stream, passes)
        return True

    def advance(
        self,
        answer: Callable[[int, np.ndarray, int, np.ndarray], None],
        stream: Callable[[int, np.ndarray], None] | None = None,
        passes: int | None = STREAM_EVERY,
    ) -> None:
        """A part of `run`: waiting requests begin in free rows, and at most `passes` are run."""
        if self._cache is None:
            rows = self.plan.size * self.branches
            sizes = dict(rows=rows, slots=self.slots, quantized=self.quantized)
            self._cache = device.allocate(config=self.model.config, **sizes)
        fresh = self._admit()
        for b in fresh:
            self._shown[b] = 0
        self._advance(fresh, passes)
        for b, at in enumerate(self.occupants):
            if at is None:
                continue
            tokens = self._rows.new_BN[b, : self._rows.step_B[b]]
            if stream is not None and len(tokens) > self._shown[b]:
                stream(at, tokens[self._shown[b] :].copy())
                self._shown[b] = len(tokens)
            if self._rows.finished_B[b]:
                forwards, commits = self._rows.forwards_B[b], self._rows.commits_BW[b]
                answer(at, tokens.copy(), int(forwards), commits.copy())
                self._release(b, tokens)

    # Which request is where.

    def _admit(self) -> list[int]:
        """Gives free rows to waiting requests, and reads their prompts. Returns these rows."""
        per_shard = self.plan.size // self.shards
        free = [b for b, at in enumerate(self.occupants) if at is None]
        free.sort(key=lambda b: (b % per_shard, b // per_shard))
        fresh = []
        for b in free[: len(self.waiting)]:
            self.occupants[b] = self.waiting.pop()
            fresh.append(b)
        if fresh:
            self._fill(fresh)
            self._read([(r, ids) for b in fresh for r, ids in self._prompts(b)])
        return fresh

    def _prompts(self, b: int) -> list[tuple[int, np.ndarray]]:
        """The rows of the cache of a request, and their prompts."""
        request, _ = self.requests[self.occupants[b]]
        # Without a negative prompt the second row repeats the first and its result is not used.
        negative = request.prompt if request.negative is None else request.negative
        prompts = (request.prompt, negative)[: self.branches]
        return [(b * self.branches + j, np.asarray(ids)) for j, ids in enumerate(prompts)]

    def _fill(self, fresh: list[int]) -> None:
        """Writes what the requests of these rows ask for."""
        rows = jax.tree.map(np.array, self._rows)
        for b in fresh:
            request, numbers = self.requests[self.occupants[b]]
            for of_all, one in zip(self._numbers, numbers, strict=True):
                of_all[b] = one
            for r, ids in self._prompts(b):
                rows.prompt_R[r], rows.last_R[r] = len(ids), ids[-1]
            rows.mask_BN[b] = self.vocab.pad
            rows.mask_BN[b, : request.new] = request.mask
            rows.choices_BA[b] = -1
            rows.choices_BA[b, : len(request.choices)] = request.choices
            rows.new_BN[b] = self.vocab.pad
            rows.length_B[b], rows.number_B[b] = request.new, request.number
            rows.guided_B[b] = request.negative is not None
            rows.step_B[b] = rows.forwards_B[b] = 0
            rows.commits_BW[b] = 0
            rows.finished_B[b] = False
            schedule = self.decoder.schedule(request.mask, self.plan.columns)
            jax.tree.map(lambda x, new, b=b: x.__setitem__(b, new), rows.schedule, schedule)
        self._rows = rows

    def _release(self, b: int, tokens: np.ndarray) -> None:
        """Frees the rows of a request; what they have read stays for others."""
        for r, ids in self._prompts(b):
            self._held[r] = np.concatenate([ids, tokens])[:-1].astype(np.int32)
        del self.requests[self.occupants[b]]
        self.occupants[b] = None

    # Prompts.

    def _read(self, prompts: list[tuple[int, np.ndarray]]) -> None:
        """Reads all of each prompt but its last token; what a row of the shard has is copied.

        Rows whose prompt begins as that of a row which is still to be read wait for that one.
        """
        while prompts:
            now, later, sources = self._first(prompts)
            self._copy([(r, source) for r, (source, have) in sources.items() if have])
            for r, ids in now:
                _, have = sources.get(r, (r, scheduling.shared(ids[:-1], self._held[r])))
                self._held[r] = ids[:have]
            self._read_rest(now)
            prompts = later

    def _first(self, prompts: list[tuple[int, np.ndarray]]):
        """Splits prompts in those to read now and those that wait; row -> (row to copy, tokens)."""
        groups: dict[tuple[int, bytes], list[tuple[int, np.ndarray]]] = {}
        for r, ids in prompts:
            groups.setdefault((self._shard(r), ids.tobytes()), []).append((r, ids))
        holders = {(self._shard(s), held.tobytes()): s for s, held in enumerate(self._held)}
        now, later, sources = [], [], {}
        for (shard, _), members in groups.items():
            ids = members[0][1]
            shared = functools.partial(scheduling.shared, ids[:-1])
            here = [s for (at, _), s in holders.items() if at == shard]
            source = max(here, key=lambda s: shared(self._held[s]))
            have = shared(self._held[source])
            promised = [shared(other) for s, other in now if self._shard(s) == shard]
            if max(promised, default=0) >= have + scheduling.WORTH_COPYING:
                later += members
                continue
            if len(ids) - 1 - have >= scheduling.WORTH_COPYING:
                later += members[1:]
                members = members[:1]
            now += members
            for r, _ in members:
                if have >= max(shared(self._held[r]) + 1, scheduling.WORTH_COPYING):
                    sources[r] = source, have
        return now, later, sources

    def _shard(self, r: int) -> int:
        """The shard that a row of the cache is in."""
        return r // (len(self._held) // self.shards)

    def _copy(self, pairs: list[tuple[int, int]]) -> None:
        if not pairs:
            return
        sources = [s % (len(self._held) // self.shards) for _, s in pairs]
        to_GN, from_GN, _ = self._grouped([r for r, _ in pairs], sources)
        needed = max(len(self._held[s]) for _, s in pairs)
        live = self._live(needed)
        with compiling.call((self.plan, "copy", to_GN.shape, live), "copying prompts"):
            arrays = (self._spread(from_GN), self._spread(to_GN))
            self._cache = device.copy_prompts(self._cache, *arrays, live=live)

    def _grouped(self, rows: list[int], *values: Sequence[int]) -> list[np.ndarray]:
        return scheduling.grouped(len(self._held) // self.shards, self.shards, rows, *values)

    def _read_rest(self, prompts: list[tuple[int, np.ndarray]]) -> None:
        """Reads what is left of each prompt, piece by piece."""
        while left := [(r, ids) for r, ids in prompts if len(self._held[r]) < len(ids) - 1]:
            most = max(len(ids) - 1 - len(self._held[r]) for r, ids in left)
            length = scheduling.piece(most)
            starts = [len(self._held[r]) for r, _ in left]
            pieces = [
                ids[: len(ids) - 1][at : at + length]
                for at, (_, ids) in zip(starts, left, strict=True)
            ]
            index_GN, start_GN, count_GN, at_GN, needed_GN = self._grouped(
                [r for r, _ in left], starts, list(map(len, pieces)), range(len(left))
            )
            count_GN *= needed_GN
            tokens_GNT = np.full((*index_GN.shape, length), self.vocab.pad, np.int32)
            for place, (at, count) in enumerate(zip(at_GN.flat, count_GN.flat, strict=True)):
                if count:
                    tokens_GNT.reshape(-1, length)[place, :count] = pieces[at]
            live = self._live(max(starts))
            name = f"reading {length} tokens of {index_GN.size} prompts"
            with compiling.call((self.model, "read", tokens_GNT.shape, self.slots, live), name):
                arrays = map(self._spread, (index_GN, tokens_GNT, start_GN, count_GN))
                self._cache = device.read_prompts(
                    self.params, self._cache, *arrays, model=self.model, live=live
                )
            for (r, ids), piece in zip(left, pieces, strict=True):
                self._held[r] = ids[: len(self._held[r]) + len(piece)]

    # The loop.

    def _advance(self, fresh: list[int], passes: int | None) -> None:
        """Runs the decoding loop until rows are free for those that wait, or for a while."""
        is_fresh_B = np.zeros(self.plan.size, bool)
        is_fresh_B[fresh] = True
        busy = sum(at is not None for at in self.occupants)
        # Prompts are read faster together, so a few rows wait for each other.
        enough = min(busy, max(1, self.plan.size // 8)) if self.waiting else busy
        live = self._live(self._needed())
        program = (
            self.model,
            self.vocab,
            self.decoder,
            self.kind,
            live,
            self.slots,
            self.plan.size,
        )
        name = f"decoding {self.plan.size} requests over {live} tokens"
        static = dict(model=self.model, vocab=self.vocab, decoder=self.decoder, kind=self.kind)
        compiling.announce((*program, self._drafts is None), name)
        self._cache, drafts, rows = device.advance(
            self.params,
            self._cache,
            self._drafts,
            jax.tree.map(self._spread, self._rows),
            self._spread(is_fresh_B),
            Numbers(*map(self._spread, self._numbers)),
            np.int32(passes or 2**31 - 1),
            np.int32(self.plan.size - busy + enough),
            **static,
            live=live,
        )
        # A decoder that keeps nothing goes on as it begins, with the same program.
        self._drafts = drafts if jax.tree.leaves(drafts) else None
        self._rows = self._rows.updated(rows)

    def _needed(self) -> int:
        """Slots that the next pass of the furthest row reads."""
        rows = self._rows
        reach_B = np.asarray(self.decoder.reach(rows)) + self.decoder.width
        needed_R = rows.first_positions() + np.repeat(reach_B, self.branches)
        return int(needed_R[np.repeat(~rows.finished_B, self.branches)].max())

    def _live(self, needed: int) -> int:
        return scheduling.live_slots(needed, self.slots)

    def _spread(self, array: np.ndarray) -> jax.Array | np.ndarray:
        return sharding.spread(array, "batch")
