"""Visual blocks: their meta text, and which tokens are allowed after IMG.

| format | block |
|---|---|
| image  | BOI "{h}*{w}" IMG, then h rows each ended by EOL, EOF, EOI (released) |
| paper  | BOI "{h}*{w} {fps}fps {seconds}s" IMG, then frames, each as in an image to its EOF, EOI |
| univla | BOI "{T}*{h}*{w}" IMG, then T frames without EOL, each ended by EOF, then EOI |

h, w and T are counts of codes. The paper (section 2.4) puts resolution, frame rate and duration
"in plain text" before a video, but the string was not published. `paper` is one choice, and data
written with it records the name. fps and seconds are decimal numbers with at most three decimals
and no superfluous zero ("24", "23.976", "0.5"). The number of frames follows from the tokens.
UniVLA, built on the released weights by the same group, trains with `univla`, which has neither fps
nor seconds.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import numpy as np

from emu3_jax.vocab import Vocab

IMAGE, PAPER, UNIVLA = "image", "paper", "univla"
FORMATS = (IMAGE, PAPER, UNIVLA)
"""Names of the forms of a visual block."""
VIDEO_FORMATS = (PAPER, UNIVLA)
"""Those of a clip."""
ANY_VISUAL = -1
"""Stands for any visual code in a constraint mask."""

_COUNT = r"([1-9][0-9]{0,5})"
_NUMBER = r"((?:0|[1-9][0-9]{0,5})(?:\.[0-9]{0,2}[1-9])?)"
_META = {
    IMAGE: re.compile(rf"{_COUNT}\*{_COUNT}"),
    PAPER: re.compile(rf"{_COUNT}\*{_COUNT} {_NUMBER}fps {_NUMBER}s"),
    UNIVLA: re.compile(rf"{_COUNT}\*{_COUNT}\*{_COUNT}"),
}
_SPELLED = {
    IMAGE: '"{h}*{w}"',
    PAPER: '"{h}*{w} {fps}fps {seconds}s"',
    UNIVLA: '"{T}*{h}*{w}"',
}


@dataclasses.dataclass(frozen=True)
class Meta:
    """The parsed meta text of a block. `t` is 0 if the text does not contain it (`paper`)."""

    format: str
    t: int
    h: int
    w: int
    fps: float = 0.0
    seconds: float = 0.0

    def __post_init__(self):
        check_format(self.format)
        if not (0 <= self.t < 10**6 and 0 < self.h < 10**6 and 0 < self.w < 10**6):
            raise ValueError(
                f"A visual block of {self.t} frames of {self.h} x {self.w} codes; "
                f"expected counts from 1 to 999999."
            )

    def text(self) -> str:
        """The meta text as written in the sequence."""
        size = f"{self.h}*{self.w}"
        if self.format == PAPER:
            return f"{size} {_decimal(self.fps)}fps {_decimal(self.seconds)}s"
        return f"{self.t}*{size}" if self.format == UNIVLA else size


def check_format(name: str) -> None:
    """ValueError unless `name` is one of `FORMATS`."""
    if name not in FORMATS:
        raise ValueError(f"The block format is {name!r}, expected one of {', '.join(FORMATS)}.")


def _decimal(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


def read_meta(text: str, video_format: str) -> Meta | None:
    """The inverse of `Meta.text` for an image or a video of `video_format`; None for other text."""
    if found := _META[IMAGE].fullmatch(text):
        return Meta(IMAGE, 1, int(found[1]), int(found[2]))
    if not (found := _META[video_format].fullmatch(text)):
        return None
    if video_format == UNIVLA:
        return Meta(UNIVLA, int(found[1]), int(found[2]), int(found[3]))
    return Meta(PAPER, 0, int(found[1]), int(found[2]), float(found[3]), float(found[4]))


def spelled(video_format: str) -> str:
    """The meta texts of an image and of a video, for error messages."""
    return f"a size text {_SPELLED[IMAGE]} or {_SPELLED[video_format]}"


def frame_length(format: str, h: int, w: int) -> int:
    """Tokens of one frame, EOF included."""
    return h * w + 1 if format == UNIVLA else h * (w + 1) + 1


def allowed_after_img(
    vocab: Vocab, format: str, t: int, h: int, w: int, length: int | None = None
) -> np.ndarray:
    """The constraint mask of offsets 1..N after IMG, int32 [N]: the id allowed, or `ANY_VISUAL`.

    N = t * frame_length + 2 (EOI, EOS), or `length`; after EOS only PAD is allowed. An image has
    t = 1. This is the released constraint, except at widths of one or two codes, where the released
    one puts EOL over EOI and EOS, and at offsets after EOS.
    """
    Meta(format, t, h, w)  # checks the arguments
    frame = frame_length(format, h, w)
    end = t * frame
    offset = np.arange(1, (end + 2 if length is None else length) + 1)
    inside = (offset - 1) % frame + 1
    allowed = np.full(offset.shape, ANY_VISUAL, np.int32)
    if format != UNIVLA:
        allowed[inside % (w + 1) == 0] = vocab.eol
    allowed[inside == frame] = vocab.eof
    allowed[offset > end] = vocab.pad
    allowed[offset == end + 1] = vocab.eoi
    allowed[offset == end + 2] = vocab.eos
    return allowed


@dataclasses.dataclass(frozen=True)
class Layout:
    """The tokens of a block after IMG, up to and including EOI. Arrays are shared and read-only.

    `ids` int32 [N], `ANY_VISUAL` at the positions of codes; `visual` bool [N], True there.
    """

    ids: np.ndarray
    visual: np.ndarray


@functools.lru_cache(maxsize=128)
def layout(vocab: Vocab, format: str, t: int, h: int, w: int) -> Layout:
    """The layout of a block, cached for each size."""
    ids = allowed_after_img(vocab, format, t, h, w)[:-1]
    visual = ids == ANY_VISUAL
    ids.flags.writeable = visual.flags.writeable = False
    return Layout(ids, visual)


def image_size(ratio: str = "1:1", area: int = 518400, spatial_factor: int = 8) -> tuple[int, int]:
    """(h, w) in codes of an image with `ratio` "W:H" and about `area` pixels.

    The released rule: scale W and H to the area, divide by the tokenizer's spatial factor, round
    half to even. 518,400 = 720 x 720 is the area of the released generation model.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,5}):([1-9][0-9]{0,5})", ratio)
    if not found:
        raise ValueError(f'The ratio is {ratio!r}, expected "W:H" such as "16:9".')
    width, height = int(found[1]), int(found[2])
    scale = math.sqrt(area / (width * height))
    h, w = round(height * scale / spatial_factor), round(width * scale / spatial_factor)
    if h < 1 or w < 1:
        raise ValueError(
            f"An image of ratio {ratio} and area {area} is {h} x {w} codes, expected more than 0."
        )
    return h, w
