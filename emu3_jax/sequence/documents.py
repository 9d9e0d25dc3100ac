"""Documents: segments of text, image and video, and the token sequences made of them."""

from __future__ import annotations

import dataclasses
import enum
import math

import numpy as np


class GrammarError(ValueError):
    """A token sequence that is not a document: `position` of the first wrong token, `found`,
    `expected` (in words)."""

    def __init__(self, position: int, found: str, expected: str):
        super().__init__(f"Position {position}: found {found}, expected {expected}.")
        self.position, self.found, self.expected = position, found, expected

    def __reduce__(self):
        return type(self), (self.position, self.found, self.expected)


class TokenClass(enum.IntEnum):
    """The class of a target token. BOS and EOS count as TEXT. IMAGE and VIDEO are codes only.
    STRUCTURE is the rest of a visual block: its marks and its meta text."""

    PAD = 0
    TEXT = 1
    IMAGE = 2
    VIDEO = 3
    STRUCTURE = 4


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weight of predicting a token of each class: 0.5 on vision tokens (paper, section 2.4).

    Attributes:
      text: weight of text.
      image: weight of the codes of images.
      video: weight of the codes of clips.
      structure: weight of marks: begin and end of texts, images, rows and frames; sizes.
    """

    text: float = 1.0
    image: float = 0.5
    video: float = 0.5
    structure: float = 1.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"The loss weight {field.name} is {value}, expected a number >= 0."
                )

    def table(self) -> np.ndarray:
        """float32 [5], indexed by `TokenClass`."""
        return np.array([0.0, self.text, self.image, self.video, self.structure], np.float32)


@dataclasses.dataclass(frozen=True)
class Text:
    """A run of text.

    Attributes:
      text: the characters, any Unicode text.
      loss: whether its tokens are trained on.
      ids: its token ids if known, which are then used unchanged; comparisons ignore them.
    """

    text: str
    loss: bool = True
    ids: np.ndarray | tuple[int, ...] | None = dataclasses.field(
        default=None, compare=False, repr=False
    )


def _codes(codes, ndim: int, what: str) -> np.ndarray:
    codes = np.asarray(codes)
    if codes.ndim != ndim or not codes.size or codes.dtype.kind not in "iu":
        raise ValueError(
            f"{what} codes have shape {codes.shape} and type {codes.dtype}, "
            f"expected integers in {ndim} dimensions, none of them empty."
        )
    return codes.astype(np.int32, copy=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Image:
    """An image as codebook indices.

    Attributes:
      codes: int32 [h, w].
      loss: whether its codes are trained on.
    """

    codes: np.ndarray
    loss: bool = True

    def __post_init__(self):
        object.__setattr__(self, "codes", _codes(self.codes, 2, "Image"))

    def __eq__(self, other):
        if not isinstance(other, Image):
            return NotImplemented
        return self.loss == other.loss and np.array_equal(self.codes, other.codes)

    def __hash__(self):
        return hash((Image, self.loss, self.codes.shape, self.codes.tobytes()))


@dataclasses.dataclass(frozen=True, eq=False)
class Video:
    """A clip as codebook indices. Numbers have three decimals, the precision of the sequence.

    Attributes:
      codes: int32 [t, h, w], t counted in latent frames.
      fps: frame rate of the pixels; 0: unknown.
      seconds: their duration; 0: unknown.
      loss: whether its codes are trained on.
    """

    codes: np.ndarray
    fps: float = 0.0
    seconds: float = 0.0
    loss: bool = True

    def __post_init__(self):
        object.__setattr__(self, "codes", _codes(self.codes, 3, "Video"))
        for name in ("fps", "seconds"):
            object.__setattr__(self, name, canonical_number(getattr(self, name), name))

    def __eq__(self, other):
        if not isinstance(other, Video):
            return NotImplemented
        mine, theirs = (self.fps, self.seconds, self.loss), (other.fps, other.seconds, other.loss)
        return mine == theirs and np.array_equal(self.codes, other.codes)

    def __hash__(self):
        return hash((Video, self.fps, self.seconds, self.codes.shape, self.codes.tobytes()))


def canonical_number(value: float, name: str) -> float:
    """`value` rounded to three decimals; ValueError unless 0 <= value < 1,000,000."""
    value = float(value)
    if not 0 <= value < 999_999.9995:  # false for NaN too
        raise ValueError(f"{name} is {value}, expected a number from 0 to below 1000000.")
    return round(value, 3) + 0.0  # -0.0 becomes 0.0


@dataclasses.dataclass(frozen=True)
class EndOfTurn:
    """An EOS inside a chat document: an answer ends and another question follows.

    Attributes:
      loss: whether this EOS is trained on.
    """

    loss: bool = True


Segment = Text | Image | Video | EndOfTurn
"""A part of a document."""


@dataclasses.dataclass(frozen=True)
class Document:
    """BOS, the segments in order, EOS.

    Attributes:
      segments: (Text, Image) is generation data, (Image, Text) is understanding data (paper,
        section 2.4); any order is allowed.
    """

    segments: tuple[Segment, ...]

    def __post_init__(self):
        object.__setattr__(self, "segments", tuple(self.segments))
        for segment in self.segments:
            if not isinstance(segment, Segment):
                raise ValueError(
                    f"A document contains a {type(segment).__name__}, "
                    f"expected Text, Image, Video or EndOfTurn."
                )

    def content(self) -> Document:
        """What token ids represent: adjacent texts joined, empty ones dropped, all loss flags on.

        `grammar.parse(grammar.build(document).ids) == document.content()`.
        """
        segments: list[Segment] = []
        for segment in self.segments:
            segment = dataclasses.replace(segment, loss=True)
            if isinstance(segment, Text):
                if segments and isinstance(segments[-1], Text):
                    segment = Text(segments.pop().text + segment.text)
                if not segment.text:
                    continue
            segments.append(segment)
        return Document(tuple(segments))


@dataclasses.dataclass(frozen=True, eq=False)
class Sequence:
    """A tokenised document of S tokens.

    Attributes:
      ids: int32 [S].
      weights: float32 [S], the loss weight of predicting ids[i] from the tokens before it; that of
        BOS is 0.
      classes: uint8 [S], the `TokenClass` of ids[i].
    """

    ids: np.ndarray
    weights: np.ndarray
    classes: np.ndarray

    def __len__(self):
        return len(self.ids)
