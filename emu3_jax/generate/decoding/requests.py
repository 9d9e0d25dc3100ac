"""Requests to the engine: prompts with constraints on the answer."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from emu3_jax.generate.decoding import constraints
from emu3_jax.vocab import Vocab


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One answer to generate.

    Attributes:
      prompt: int32 [P], the ids to continue, beginning with BOS.
      negative: int32 [P'], the prompt of the unconditional branch, or None for no guidance.
      forced: int32 [N], what each new token must be: an id, or -1 for any visual token
        (`emu3_jax.sequence.allowed_after_img`), or another entry of `decoding.constraints`. None
        for free text until EOS.
      max_new: the longest answer; for `forced` it is N and may be left out.
      number: selects the random draws; None: the request's position in the list. The same number,
        seed and settings give the same tokens in any batch.
      may_be_empty: whether free text may be EOS alone.
      label: what messages call it, such as the file that it is about.
      choices: the ids that an entry CHOICE of `forced` allows: text tokens or IMG.
    """

    prompt: np.ndarray
    negative: np.ndarray | None = None
    forced: np.ndarray | None = None
    max_new: int | None = None
    number: int | None = None
    may_be_empty: bool = True
    label: str = ""
    choices: tuple[int, ...] = ()

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
    def is_text(self) -> bool:
        """Whether the answer is a text."""
        return self.forced is None

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longer of prompt and negative prompt."""
        return max(len(self.prompt), 0 if self.negative is None else len(self.negative))


class CancelledError(Exception):
    """The caller has stopped a queue of requests.

    Attributes:
      answers: position in the list → the answer; of the requests that were finished before.
    """

    def __init__(self, answers: Mapping, asked: int):
        super().__init__(f"cancelled: {len(answers)} of {asked} requests are answered")
        self.answers = dict(answers)


def check(
    requests: list[Request], vocab: Vocab, max_context: int | None, window: int | None = None
) -> None:
    """Raises a ValueError that names the first request that cannot be run, and why.

    Also if the window of a decoder is longer than every image and clip.
    """
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
    longest = max((request.new for request in requests if not request.is_text), default=None)
    if window is not None and longest is not None and window > longest:
        raise ValueError(f"window={window} is longer than the longest answer, {longest} tokens.")
