"""Clips after a caption, from a first image, and on from what was filmed."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from emu3_jax.demo.exhibit import Exhibit
from emu3_jax.demo.tabs.imaging import size_of
from emu3_jax.demo.visitors import Pace
from emu3_jax.generate import modalities
from emu3_jax.generate.completion import going_on
from emu3_jax.generate.completion.partly_given import DRAW
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.generate.modalities import Options
from emu3_jax.sequence import Video

MOST_FRAMES = 16  # latent frames of one request


class Film(NamedTuple):
    """A clip, or its first frames.

    Attributes:
      frames: uint8 [T, H, W, 3]; None of none.
      done, rows: rows of codes that are drawn, and that are to be drawn.
      fps: frames per second.
      clip: its codes when all are drawn.
    """

    frames: np.ndarray | None
    done: int
    rows: int
    fps: float
    clip: Video | None = None


Show = Callable[[Film], None]


def film(
    exhibit: Exhibit,
    prompt: str,
    first: np.ndarray | None,
    size: str,
    frames: int,
    fps: float,
    sampling: Sampling,
    show: Show,
    cancel: Callable[[], bool],
) -> Film:
    """Films `frames` latent frames after a caption.

    Args:
      exhibit: the model.
      prompt: the caption; may be "" after a first image.
      first: the first image, uint8 [H, W, 3] from `Exhibit.read`, or None.
      size: see `imaging.size_of`; that of the first image, if there is one.
      frames: latent frames, the first image's among them.
      fps: frames per second, which the model is told.
      sampling: how.
      show: called with the clip so far.
      cancel: True ends it.

    Raises:
      ValueError: nothing to film, a number out of range, or no room in the model's context.
      CancelledError: `cancel` said so.
    """
    least = 1 if first is None else 2
    if first is None and not prompt.strip():
        raise ValueError("Write what is to be filmed, or give a first image.")
    if not least <= frames <= MOST_FRAMES:
        raise ValueError(f"The latent frames are {frames}; expected {least} to {MOST_FRAMES}.")
    if not 0 < fps <= 120:
        raise ValueError(f"The rate is {fps:g} frames per second; expected above 0 to 120.")
    seconds = frames * exhibit.factor / fps
    options = _options(exhibit, sampling, show, cancel, fps, None)
    if first is not None:
        images = [exhibit.encode(first)]
        one = (exhibit.bundle, [prompt], images, frames, fps, seconds, options)
        (codes,) = going_on.image_to_video(*one)
    else:
        sizes = [(frames, *size_of(size, exhibit))]
        (codes,) = modalities.draw_clips(exhibit.bundle, [prompt], sizes, fps, [seconds], options)
    return _filmed(exhibit, Video(codes, fps, seconds))


def extend(
    exhibit: Exhibit,
    clip: Video,
    prompt: str,
    new: int,
    sampling: Sampling,
    show: Show,
    cancel: Callable[[], bool],
) -> Film:
    """Films `new` more latent frames, after as many of the last ones as the context holds.

    Without a prompt they are predicted from the frames alone. Otherwise as `film`.
    """
    if not 1 <= new <= MOST_FRAMES:
        raise ValueError(f"The new latent frames are {new}; expected 1 to {MOST_FRAMES}.")
    options = _options(exhibit, sampling, show, cancel, clip.fps, clip)
    known = len(clip.codes)
    most = going_on.room(exhibit.bundle, prompt, clip, known + new, options)
    context = max(1, min(known, most - min(new, most // 2)))
    stride = max(1, min(new, most - context))
    if prompt.strip():
        one = (exhibit.bundle, [prompt], [clip], new, context, options, stride)
        (codes,) = going_on.extend_video(*one)
    else:
        one = (exhibit.bundle, [clip], new, context, options, stride)
        (codes,) = going_on.predict_video(*one)
    return _filmed(exhibit, Video(codes, clip.fps, len(codes) * exhibit.factor / clip.fps))


def _options(
    exhibit: Exhibit,
    sampling: Sampling,
    show: Show,
    cancel: Callable[[], bool],
    fps: float,
    before: Video | None,
) -> Options:
    """Options that show the frames which are complete, after those of the clip before."""
    pace = Pace()

    def on_row(position: int, complete: int, rows: int, codes: np.ndarray) -> None:
        del position
        if not pace.is_due():
            return
        began = time.monotonic()
        frames = None
        whole = int((codes != DRAW).all(axis=(1, 2)).sum())
        if before is None and whole:
            frames = exhibit.decode(codes)[: whole * exhibit.factor]
        show(Film(frames, complete, rows, fps))
        pace.shown(began)

    return exhibit.options(sampling, cancel, on_row=on_row)


def _filmed(exhibit: Exhibit, clip: Video) -> Film:
    rows = clip.codes.shape[0] * clip.codes.shape[1]
    return Film(exhibit.decode(clip.codes), rows, rows, clip.fps, clip)
