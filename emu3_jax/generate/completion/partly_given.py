"""A visual block of which some codes are given.

What is given before the first code to draw becomes the end of the prompt and is read at once; what
is given between the codes to draw is forced. Codes are drawn in raster order, so each depends on
all that is given before it and on nothing that is given behind it.
"""

import dataclasses
import textwrap
from collections.abc import Callable, Sequence

import numpy as np

from emu3_jax.sequence import ANY_VISUAL, Segment, Text
from emu3_jax.vocab import Vocab

DRAW = -1  # instead of a code: it is to be drawn


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """What the model reads of a block, and what it draws.

    Attributes:
      begin: int32, the tokens after IMG that are given, up to the first code to draw.
      mask: int32, the constraints on the tokens behind them. If codes are given, they end with the
        last code to draw.
      codes: int32 [h, w] or [t, h, w], the codes that are given, and DRAW.
    """

    begin: np.ndarray
    mask: np.ndarray
    codes: np.ndarray

    def completed(self, answer: np.ndarray, vocab: Vocab) -> np.ndarray:
        """The codes with those of an answer under `mask`; int32, in the shape of `codes`.

        Those that an answer which is not complete lacks stay DRAW.
        """
        codes = self.codes.copy()
        drawn = vocab.codes(answer[self.mask[: len(answer)] == ANY_VISUAL])
        codes.flat[np.flatnonzero(codes == DRAW)[: len(drawn)]] = drawn
        return codes

    def row_ends(self) -> np.ndarray:
        """How long the answer is when each row that has codes to draw is complete, int [rows]."""
        row = np.flatnonzero(self.codes == DRAW) // self.codes.shape[-1]
        is_last = np.append(row[1:] != row[:-1], True)
        return np.flatnonzero(self.mask == ANY_VISUAL)[is_last] + 1


def block(
    vocab: Vocab,
    layout: np.ndarray,
    size: tuple[int, ...],
    given: np.ndarray | None,
    label: str = "The codes",
) -> Block:
    """The block of a size whose tokens after IMG are `layout`.

    Args:
      vocab: the token space.
      layout: int32 [N], from `Grammar.visual_layout`.
      size: (h, w) or (t, h, w).
      given: codes of that size, DRAW where one is to be drawn; None if all are.
      label: what messages call it.

    Raises:
      ValueError: another size, a code outside the codebook, or nothing to draw.
    """
    if given is None:
        return Block(layout[:0], layout, np.full(size, DRAW, np.int32))
    codes = np.asarray(given)
    if codes.shape != tuple(size):
        raise ValueError(
            f"{label}: codes of the size {spelled(codes.shape)} are given, not {spelled(size)}."
        )
    is_given = codes != DRAW
    if is_given.all():
        raise ValueError(f"{label}: all codes are given; there is nothing to draw.")
    tokens = layout.copy()
    at = np.flatnonzero(layout == ANY_VISUAL)
    tokens[at[is_given.ravel()]] = vocab.visual_ids(codes[is_given])
    first, last = np.flatnonzero(tokens == ANY_VISUAL)[[0, -1]]
    return Block(tokens[:first], tokens[first : last + 1], codes.astype(np.int32))


class RowProgress:
    """Turns tokens into the rows of images and clips that are complete."""

    def __init__(
        self,
        blocks: Sequence[Block],
        candidates: int,
        on_row: Callable[[int, int, int, np.ndarray], None],
        vocab: Vocab,
    ):
        """Takes what is drawn, of which `candidates` neighbours are of one answer.

        `on_row` is called as on_row(position of the answer, rows complete, rows in all, codes).
        """
        self._blocks, self._vocab = blocks, vocab
        self._ends = [drawn.row_ends() for drawn in blocks]
        self._seen = [np.zeros(0, np.int32)] * len(blocks)
        self._rows = [0] * len(blocks)
        self._candidates, self._on_row = candidates, on_row

    def __call__(self, at: int, tokens: np.ndarray) -> None:
        """Takes the next tokens of block `at`."""
        self._seen[at] = np.concatenate([self._seen[at], tokens])
        complete = int(np.searchsorted(self._ends[at], len(self._seen[at]), side="right"))
        position = at // self._candidates
        same = slice(position * self._candidates, (position + 1) * self._candidates)
        rows = sum(map(len, self._ends[same]))
        while self._rows[at] < complete:
            self._rows[at] += 1
            end = self._ends[at][self._rows[at] - 1]
            codes = self._blocks[at].completed(self._seen[at][:end], self._vocab)
            self._on_row(position, sum(self._rows[same]), rows, codes)


def named(prompt: str | Sequence[Segment], size: Sequence[int]) -> str:
    """What messages call an image or a clip to draw."""
    if not isinstance(prompt, str):
        prompt = " ".join(segment.text for segment in prompt if isinstance(segment, Text))
    short = textwrap.shorten(prompt, 60, placeholder="…")
    return f"The prompt {short!r} at {spelled(size)}"


def spelled(size: Sequence[int]) -> str:
    """A size in codes, such as "2x8x8"."""
    return "x".join(map(str, size))
