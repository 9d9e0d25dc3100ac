"""Jobs whose files are part of what is drawn: their checks, and the codes that are given."""

from collections.abc import Sequence

import numpy as np

from emu3_jax.data import media
from emu3_jax.generate import modalities
from emu3_jax.generate.completion import going_on, inpainting
from emu3_jax.generate.completion.partly_given import DRAW, spelled
from emu3_jax.generate.job import Job
from emu3_jax.interop.bundle import Bundle
from emu3_jax.models.vision.tokenizer import VisionTokenizerConfig
from emu3_jax.sequence import Image, Video

# A pixel of a mask from this level on (of 255) is white: to be drawn.
WHITE = 128


def check(job: Job, pixels: Sequence[np.ndarray], config: VisionTokenizerConfig) -> None:
    """MediaError for files that do not go together with the job or with each other.

    Args:
      job: one that completes what it reads.
      pixels: uint8 [H, W, 3] or [T, H, W, 3] of each file of `job.media`.
      config: of the vision tokenizer.
    """
    if job.task == "inpaint":
        for file, mask in zip(job.media, masks(job), strict=True):
            size, mask_size = media.read_image(file).shape[:2], mask.shape
            if size != mask_size:
                raise media.MediaError(
                    f"The mask of {file} has {spelled(mask_size[::-1])} pixels, the image "
                    f"{spelled(size[::-1])}."
                )
            if not mask.any():
                raise media.MediaError(f"The mask of {file} is black: nothing is to be drawn.")
        return
    if job.task == "image_to_video":
        for one in job.drawings:
            size = tuple(side // config.spatial_factor for side in pixels[one.source].shape[:2])
            if one.size[1:] not in ((), size):
                raise media.MediaError(
                    f"{job.media[one.source]} is {spelled(size)} codes, so a clip that begins with "
                    f"it cannot have {spelled(one.size[1:])}."
                )
        return
    frames = [len(clip) // config.temporal_downsample_factor for clip in pixels]
    for file, t in zip(job.media, frames, strict=True):
        if job.context is None and t != frames[0]:
            raise media.MediaError(
                f"{job.media[0]} has {frames[0]} latent frames and {file} {t}; set context, the "
                "number that is given of each."
            )
        if t < (job.context or 1):
            raise media.MediaError(
                f"{file} has {t} latent frames, fewer than the {job.context} to be given."
            )


def masks(job: Job) -> list[np.ndarray]:
    """Where each image of the job is to be drawn: bool [H, W]."""
    found = [media.read_image(file).mean(axis=-1) >= WHITE for file in job.masks]
    return found * len(job.media) if len(found) == 1 else found


def draw(
    job: Job, bundle: Bundle, blocks: Sequence[Image | Video], options: modalities.Options
) -> list[np.ndarray]:
    """The codes of `job.drawings`, with those that are given.

    Args:
      job: one that completes what it reads.
      bundle: the models.
      blocks: the codes of each file of `job.media`.
      options: how to sample.
    """
    prompts = [one.prompt for one in job.drawings]
    before = [blocks[one.source] for one in job.drawings]
    codes = [block.codes for block in before]
    if job.task == "inpaint":
        drawn = masks(job)
        keep = [
            inpainting.kept_codes(drawn[one.source], *blocks[one.source].codes.shape)
            for one in job.drawings
        ]
        return inpainting.inpaint(bundle, prompts, codes, keep, options)
    if job.task == "image_to_video":
        lengths = [one.size[0] - 1 for one in job.drawings]
        given = [
            np.concatenate([first[None], np.full((rest, *first.shape), DRAW)])
            for first, rest in zip(codes, lengths, strict=True)
        ]
        frame_seconds = bundle.vision.config.temporal_downsample_factor / job.fps
        seconds = [len(one) * frame_seconds for one in given]
        sizes = [one.shape for one in given]
        return modalities.draw_clips(bundle, prompts, sizes, job.fps, seconds, options, given=given)
    (new,) = job.sizes[0]
    context = job.context or len(codes[0])
    if job.task == "predict_video":
        return going_on.predict_video(bundle, before, new, context, options, job.stride)
    return going_on.extend_video(bundle, prompts, before, new, context, options, job.stride)
