"""Clips whose first latent frames are given: after a first image, and on from a clip.

The given frames are the beginning of the clip that the model draws: BOS, caption, BOI, meta, IMG,
given frames, and the rest follows. So the prompt is the beginning of a document of text_to_video,
and any model that draws clips can go on with one, without tuning. (Models tuned on documents of
a context and its continuation, `data.sources.continuation`, take the context as a block of its own:
`modalities.draw_clips` after segments.) The paper continues 2 seconds by the next 2, repeatedly;
its layout is not public, nor are its weights.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from emu3_jax.generate import modalities
from emu3_jax.generate.completion.partly_given import DRAW
from emu3_jax.generate.modalities import Options
from emu3_jax.interop.bundle import Bundle
from emu3_jax.sequence import Video


def image_to_video(
    bundle: Bundle,
    captions: Sequence[str],
    images: Sequence[np.ndarray],
    t: int,
    fps: float,
    seconds: float,
    options: Options | None = None,
) -> list[np.ndarray]:
    """Draws a clip on from each image: codes int32 [t, h, w] each.

    The codes of an image, int32 [h, w], are those of a latent frame that shows it throughout; they
    are the first of the clip. `fps` and `seconds` describe the whole decoded clip. A caption
    may be "".
    """
    given = []
    for image in images:
        codes = np.full((t, *np.shape(image)), DRAW, np.int32)
        codes[:1] = image
        given.append(codes)
    sizes = [codes.shape for codes in given]
    options = options or Options()
    return modalities.draw_clips(bundle, captions, sizes, fps, {t: seconds}, options, given=given)


def extend_video(
    bundle: Bundle,
    captions: Sequence[str],
    clips: Sequence[Video],
    new: int,
    context: int,
    options: Options | None = None,
    stride: int | None = None,
) -> list[np.ndarray]:
    """Draws `new` latent frames after each clip: codes int32 [t + new, h, w], the clip's first.

    The last `context` frames are given and `stride` frames are drawn after them, then being part
    of what is given, until there are enough. So a clip may become longer than the model's context.
    Each time the prompt states the duration of the given and the drawn frames together.

    Args:
      bundle: a model that draws clips.
      captions: one per clip; may be "".
      clips: with fps and seconds; lengths, sizes and rates may differ.
      new: latent frames to draw.
      context: latent frames that are given.
      options: how to sample. Every window has draws of its own.
      stride: latent frames drawn at once; None: as many as are given (paper: 2 s and 2 s).

    Raises:
      ValueError: a clip shorter than the context or of unknown duration; no room in the model's
        context.
    """
    options = options or Options()
    stride = min(context if stride is None else stride, new)
    _check(bundle, captions, clips, new, context, stride, options)
    grown = [clip.codes for clip in clips]
    for done in range(0, new, stride):
        now = min(stride, new - done)
        given = [_next(codes, context, now) for codes in grown]
        drawn = modalities.draw_clips(
            bundle,
            captions,
            [codes.shape for codes in given],
            [clip.fps for clip in clips],
            [_seconds(clip, context + now) for clip in clips],
            _of_round(options, done, new, now),
            given=given,
        )
        pairs = zip(grown, drawn, strict=True)
        grown = [np.concatenate([known, codes[context:]]) for known, codes in pairs]
    return grown


def predict_video(
    bundle: Bundle,
    clips: Sequence[Video],
    new: int,
    context: int,
    options: Options | None = None,
    stride: int | None = None,
) -> list[np.ndarray]:
    """`extend_video` from the frames alone, without text.

    Without a negative prompt there is nothing to guide by, and no second branch is run.
    """
    options = options or Options()
    if not options.negative_prompt:
        sampling = dataclasses.replace(options.sampling, guidance=1.0)
        options = dataclasses.replace(options, sampling=sampling)
    captions = [""] * len(clips)
    return extend_video(bundle, captions, clips, new, context, options, stride)


def _check(bundle: Bundle, captions, clips, new: int, context: int, stride: int, options) -> None:
    """ValueError unless all of it goes together."""
    modalities.check_list("captions", captions)
    if len(captions) != len(clips):
        raise ValueError(f"There are {len(clips)} clips and {len(captions)} captions.")
    for name, value in (("new", new), ("context", context), ("stride", stride)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1 latent frame, not {value}.")
    for i, (caption, clip) in enumerate(zip(captions, clips, strict=True)):
        t = len(clip.codes)
        if t < context:
            raise ValueError(
                f"Clip {i} has {t} latent frames, fewer than the {context} to be given."
            )
        if not (clip.fps and clip.seconds):
            raise ValueError(f"Clip {i} has no fps and seconds, which the prompt states.")
        if (most := room(bundle, caption, clip, context + stride, options)) < context + stride:
            raise ValueError(
                f"{context} given and {stride} new latent frames of clip {i} do not fit in the "
                f"model's context of {bundle.max_context} tokens, which has room for {most} in all."
            )


def _next(codes: np.ndarray, context: int, now: int) -> np.ndarray:
    """The last `context` latent frames and `now` to draw, int32 [context + now, h, w]."""
    empty = np.full((now, *codes.shape[1:]), DRAW, np.int32)
    return np.concatenate([codes[len(codes) - context :], empty])


def _seconds(clip: Video, t: int) -> float:
    """The duration of t latent frames of a clip."""
    return t * clip.seconds / len(clip.codes)


def room(bundle: Bundle, caption: str, clip: Video, wanted: int, options: Options) -> int:
    """The most latent frames, up to `wanted`, that the model's context holds after a caption."""
    if bundle.max_context is None:
        return wanted
    texts = [caption, options.negative_prompt] if options.sampling.guided else [caption]

    def read(t: int) -> int:
        size = (t, *clip.codes.shape[1:])
        last = np.flatnonzero(bundle.grammar.visual_layout("video", *size) == DRAW)[-1]
        seconds = _seconds(clip, t)
        prompts = [bundle.grammar.video_prompt(text, *size, clip.fps, seconds) for text in texts]
        return max(map(len, prompts)) + int(last)

    return max((t for t in range(1, wanted + 1) if read(t) <= bundle.max_context), default=0)


def _of_round(options: Options, done: int, new: int, now: int) -> Options:
    """The options with which `now` frames are drawn after `done` of `new`."""
    seed, on_row = options.sampling.seed, options.on_row
    if done:
        seed = int(np.random.SeedSequence((seed, done)).generate_state(1)[0])
    sampling = dataclasses.replace(options.sampling, seed=seed)

    def tell(position: int, row: int, rows: int, codes: np.ndarray) -> None:
        on_row(position, rows // now * done + row, rows // now * new, codes)

    return dataclasses.replace(options, sampling=sampling, on_row=on_row and tell)
