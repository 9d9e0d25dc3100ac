"""Pixels to codes and back: the vision tokenizer of a bundle, one image size at a time."""

import json
import os
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from emu3_jax.data import media
from emu3_jax.data.codec import vision_codec
from emu3_jax.data.media.sizes import MAX_ASPECT
from emu3_jax.interop.bundle import Bundle
from emu3_jax.interop.relayout import PREPROCESSOR_FILE

BATCH_SIZE = 8


def pixel_limits(
    vision_tokenizer: str | os.PathLike,
    spatial_factor: int,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    trained: Mapping[str, float] | None = None,
) -> media.PixelLimits:
    """The given limits, else those that the language model was trained with, else those of the
    tokenizer's preprocessor_config.json, else the released ones.

    Args:
      vision_tokenizer: its directory.
      spatial_factor: pixels of a code along each side.
      min_pixels, max_pixels: given limits.
      trained: `Language.media` of the language model.
    """
    file = epath.Path(vision_tokenizer) / PREPROCESSOR_FILE
    stored = {}
    if file.exists():
        try:
            stored = json.loads(file.read_text())
        except ValueError as error:
            raise ValueError(f"{file} is not JSON ({error}).") from error
    stored |= trained or {}
    default = media.PixelLimits()
    least = min_pixels if min_pixels is not None else stored.get("min_pixels", default.min_pixels)
    most = max_pixels if max_pixels is not None else stored.get("max_pixels", default.max_pixels)
    return media.PixelLimits(least, most, spatial_factor)


def padded(pixels: np.ndarray) -> np.ndarray:
    """An image with black borders, if it is longer than the released image processor takes.

    VLMEvalKit's class for Emu3 does this; the image processor alone refuses such an image.
    """
    height, width = pixels.shape[:2]
    least = int(max(height, width) / MAX_ASPECT + 1)
    if max(height, width) <= MAX_ASPECT * min(height, width):
        return pixels
    missing = [max(0, least - side) for side in (height, width)]
    return np.pad(pixels, [*((m // 2, m - m // 2) for m in missing), (0, 0)])


def fitted(pixels: np.ndarray, limits: media.PixelLimits) -> np.ndarray:
    """An image, padded if it is too long, and resized within the limits."""
    pixels = padded(pixels)
    return media.resize(pixels, *media.smart_resize(*pixels.shape[:2], limits))


def encode(
    bundle: Bundle,
    pixels: Sequence[np.ndarray],
    limits: media.PixelLimits,
    clips: str = vision_codec.CAUSAL,
) -> list[np.ndarray]:
    """Codes of images uint8 [H, W, 3] and clips uint8 [T, H, W, 3], resized by the released rule.

    Frames after the last whole latent frame are dropped. `clips`: see `vision_codec`.

    Returns:
      int32 [h, w] per image, [t, h, w] per clip.

    Raises:
      MediaError: a size outside the limits, or a clip shorter than one latent frame.
    """
    factor = bundle.vision.config.temporal_downsample_factor
    resized = []
    for array in pixels:
        if array.ndim == 4 and len(array) < factor:
            raise media.MediaError(
                f"A clip of {len(array)} frames is shorter than one latent frame of {factor}."
            )
        size = media.smart_resize(*array.shape[-3:-1], limits)
        resized.append(media.resize(array, *size))
    return vision_codec.encode((bundle.vision, bundle.vision_variables), resized, BATCH_SIZE, clips)


def decode(
    bundle: Bundle, codes: Sequence[np.ndarray], clips: str = vision_codec.CAUSAL
) -> list[np.ndarray]:
    """Pixels of codes: int32 [h, w] -> uint8 [H, W, 3], [t, h, w] -> uint8 [T, H, W, 3]."""
    return vision_codec.decode((bundle.vision, bundle.vision_variables), codes, BATCH_SIZE, clips)
