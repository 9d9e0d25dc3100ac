"""Images after a caption, while they are drawn."""

import dataclasses
import re
import time
from collections.abc import Callable

import numpy as np

from emu3_jax.demo.exhibit import Exhibit
from emu3_jax.demo.visitors import Pace
from emu3_jax.generate import best_of, modalities
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.generate.job import parse_size
from emu3_jax.sequence import Image, image_size

MOST_IMAGES = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """An image, or its first rows.

    Attributes:
      size: (h, w) in codes.
      rows: how many rows of codes are drawn.
      pixels: uint8 [H, W, 3] of these rows; None of none.
      codes: int32 [h, w] when all are.
      nats: -log p of the caption after the image, by the model that drew it; None if not measured.
    """

    size: tuple[int, int]
    rows: int = 0
    pixels: np.ndarray | None = None
    codes: np.ndarray | None = None
    nats: float | None = None


def size_of(text: str, exhibit: Exhibit) -> tuple[int, int]:
    """(h, w) in codes of "8x8", or of a ratio "4:3", width to height.

    Raises:
      ValueError: neither, or a side without codes.
    """
    text = re.sub(r"\s*[x×*]\s*", "x", text.strip())
    if re.fullmatch(r"\d{1,4}x\d{1,4}", text):
        h, w = parse_size(text, "text_to_image")
        if min(h, w) < 1:
            raise ValueError(f"A size needs at least one code on each side, not {text}.")
        return h, w
    if ":" not in text:
        raise ValueError(f"The size is {text!r}; expected rows x columns of codes, such as 8x8, or "
                         "a ratio of width to height, such as 4:3.")  # fmt: skip
    return image_size(text, exhibit.area, exhibit.limits.spatial_factor)


def draw(
    exhibit: Exhibit,
    prompt: str,
    size: str,
    count: int,
    sampling: Sampling,
    show: Callable[[tuple[Picture, ...]], None],
    cancel: Callable[[], bool],
) -> tuple[Picture, ...]:
    """Draws images after a caption.

    Args:
      exhibit: the model.
      prompt: the caption.
      size: see `size_of`.
      count: images, at most `MOST_IMAGES`.
      sampling: how; image n has the draws of answer n of the seed.
      show: called with the images so far.
      cancel: True ends it.

    Raises:
      ValueError: a setting that is none, or no room in the model's context.
      CancelledError: `cancel` said so.
    """
    h, w = size_of(size, exhibit)
    if not prompt.strip():
        raise ValueError("Write what is to be drawn.")
    if not 1 <= count <= MOST_IMAGES:
        raise ValueError(f"The number of images is {count}; expected 1 to {MOST_IMAGES}.")
    if sampling.greedy:
        count = 1  # all would be equal
    pictures = [Picture((h, w)) for _ in range(count)]
    pace, latest = Pace(), {}

    def on_row(position: int, complete: int, rows: int, codes: np.ndarray) -> None:
        del rows
        latest[position] = complete, codes
        if not pace.is_due():
            return
        began = time.monotonic()
        for at, (complete, codes) in latest.items():
            pictures[at] = _part(exhibit, complete, codes)
        latest.clear()
        show(tuple(pictures))
        pace.shown(began)

    show(tuple(pictures))
    options = exhibit.options(sampling, cancel, on_row=on_row)
    drawn = modalities.draw_images(exhibit.bundle, [prompt] * count, [(h, w)] * count, options)
    nats = _judged(exhibit, drawn, prompt)
    return tuple(
        dataclasses.replace(_part(exhibit, h, codes), codes=codes, nats=value)
        for codes, value in zip(drawn, nats, strict=True)
    )


def _part(exhibit: Exhibit, rows: int, codes: np.ndarray) -> Picture:
    """The first rows of an image."""
    pixels = exhibit.decode(codes)
    return Picture(codes.shape, rows, pixels[: rows * len(pixels) // len(codes)])


def _judged(exhibit: Exhibit, drawn: list[np.ndarray], prompt: str) -> list[float | None]:
    """-log p of the caption after each of several images, if the model learnt to describe them."""
    if len(drawn) == 1 or not exhibit.can("image_to_text"):
        return [None] * len(drawn)
    blocks, captions = [Image(codes) for codes in drawn], [prompt] * len(drawn)
    try:
        nats = exhibit.serving.call(best_of.caption_nats, exhibit.bundle, blocks, captions)
    except ValueError:  # image and caption are longer than the context together
        return [None] * len(drawn)
    return nats.tolist()
