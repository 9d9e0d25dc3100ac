"""Requests to the engine: prompts with constraints on the answer, and the shapes of their batches.

Every shape is compiled once, so lengths and batch sizes are rounded up to few buckets: prompts to
powers of two, new tokens to quarters of an octave (at most a quarter is wasted), batches to powers
of two, then to a multiple of the devices.
"""

import dataclasses

import numpy as np

from emu3_jax.generate.decoding import constraints
from emu3_jax.vocab import Vocab

MIN_PREFILL = 32
MIN_NEW = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One answer to generate.

    Attributes:
      prompt: int32 [P], the ids to continue, beginning with BOS.
      negative: int32 [P'], the prompt of the unconditional branch, or None for no guidance.
      forced: int32 [N], what each new token must be: an id, or -1 for any visual token
        (`emu3_jax.sequence.allowed_after_img`). None for free text until EOS.
      max_new: the longest answer; for `forced` it is N and may be left out.
      number: selects the random draws; None: the request's position in the list. The same number,
        seed and settings give the same tokens in any batch.
      may_be_empty: whether free text may be EOS alone.
      label: what messages call it, such as the file that it is about.
    """

    prompt: np.ndarray
    negative: np.ndarray | None = None
    forced: np.ndarray | None = None
    max_new: int | None = None
    number: int | None = None
    may_be_empty: bool = True
    label: str = ""

    @property
    def mask(self) -> np.ndarray:
        """The request's constraint mask, int32 [N]; see `decoding.constraints`."""
        if self.forced is None:
            return constraints.free_text(self.max_new, self.may_be_empty)
        return np.asarray(self.forced, np.int32)[: self.max_new]

    @property
    def new(self) -> int:
        """The most tokens that the answer can have."""
        if self.forced is None:
            return self.max_new
        return len(self.forced) if self.max_new is None else min(self.max_new, len(self.forced))

    @property
    def read(self) -> int:
        """Tokens that the model reads: the last new one is predicted only, as that of a document
        in training (`data.tokens.cutting`)."""
        return self.longest_prompt + self.new - 1

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longer of prompt and negative prompt."""
        return max(len(self.prompt), 0 if self.negative is None else len(self.negative))


@dataclasses.dataclass(frozen=True)
class Batch:
    """Requests that run together, by their positions in the list, and the shape of their padding.

    `prefill` counts the tokens read before the loop: all of the longest prompt but its last, which
    is the first one that the decoding loop reads.
    """

    members: tuple[int, ...]
    rows: int
    prefill: int
    new: int

    @property
    def capacity(self) -> int:
        """Slots of the cache. The last token of the prompt needs one, the last new token none."""
        return self.prefill + self.new


def check(requests: list[Request], vocab: Vocab, max_context: int | None) -> None:
    """Raises a ValueError that names the first request that cannot be run, and why."""
    for i, request in enumerate(requests):
        label = request.label or f"Request {i}"
        if request.forced is None and request.max_new is None:
            raise ValueError(f"{label}: there are neither forced tokens nor max_new.")
        if request.new < 1:
            raise ValueError(f"{label}: {request.new} new tokens; at least 1 is needed.")
        for name in ("prompt", "negative"):
            ids = getattr(request, name)
            if ids is None:
                continue
            ids = np.asarray(ids)
            if ids.ndim != 1 or len(ids) == 0:
                raise ValueError(f"{label}: the {name} is empty; it must begin with BOS.")
            if ids.min() < 0 or ids.max() >= vocab.size:
                wrong = ids[(ids < 0) | (ids >= vocab.size)][0]
                raise ValueError(f"{label}: the {name} has {vocab.name(wrong)}.")
        if max_context is not None and request.read > max_context:
            raise ValueError(
                f"{label}: {request.read} tokens are needed ({request.longest_prompt} of prompt "
                f"and {request.new} new, the last of which is not read), more than the context of "
                f"{max_context}."
            )


def bucket_power(n: int, least: int = 1) -> int:
    """The smallest power of two that is at least `n` and `least`."""
    return max(least, 1 << max(n - 1, 0).bit_length())


def bucket_quarter(n: int, least: int = MIN_NEW) -> int:
    """`n` rounded up to a multiple of a quarter of the power of two below it."""
    n = max(n, least)
    step = max(1, (1 << (n.bit_length() - 1)) // 4)
    return -(-n // step) * step


def plan(requests: list[Request], batch_size: int, devices: int = 1) -> list[Batch]:
    """Splits the requests into even batches of at most `batch_size`, similar ones together.

    `devices` is the number of shards of the rows; the rows of a batch are a multiple of it.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")

    def length(i: int) -> tuple:
        return requests[i].forced is None, requests[i].new, requests[i].longest_prompt

    order = sorted(range(len(requests)), key=length)
    count = -(-len(order) // batch_size)
    batches = []
    for members in np.array_split(np.array(order, int), count) if count else []:
        chosen = [requests[i] for i in members]
        rows = min(bucket_power(len(members)), batch_size)
        batches.append(
            Batch(
                members=tuple(int(i) for i in members),
                rows=-(-rows // devices) * devices,
                prefill=bucket_power(max(r.longest_prompt for r in chosen) - 1, MIN_PREFILL),
                new=bucket_quarter(max(r.new for r in chosen)),
            )
        )
    return batches
