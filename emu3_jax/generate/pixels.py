"""Between files and codes: the vision tokenizer of a bundle, one picture size at a time."""

import functools
import json
import os
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from emu3_jax.data import media
from emu3_jax.interop.bundle import Bundle

# The file in which the hub keeps the pixel limits beside a vision tokenizer's weights.
PREPROCESSOR_FILE = "preprocessor_config.json"


@functools.lru_cache(maxsize=4)
def _compiled(module, method: str):
    return jax.jit(functools.partial(module.apply, method=method))


def pixel_limits(
    vision_tokenizer: str | os.PathLike,
    spatial_factor: int,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> media.PixelLimits:
    """The given limits, else those of the tokenizer's preprocessor_config.json, else released."""
    file = pathlib.Path(vision_tokenizer) / PREPROCESSOR_FILE
    stored = {}
    if file.exists():
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is not JSON ({error}).") from error
    default = media.PixelLimits()
    least = min_pixels if min_pixels is not None else stored.get("min_pixels", default.min_pixels)
    most = max_pixels if max_pixels is not None else stored.get("max_pixels", default.max_pixels)
    return media.PixelLimits(least, most, spatial_factor)


def encode(bundle: Bundle, pixels: Sequence[np.ndarray], limits: media.PixelLimits) -> list:
    """Codes of pictures uint8 [H, W, 3] and clips uint8 [T, H, W, 3], resized by the released rule.

    Frames behind the last whole latent frame are dropped.

    Returns:
      int32 [h, w] or [t, h, w] each.

    Raises:
      MediaError: a size outside the limits, or a clip shorter than one latent frame.
    """
    encoder = _compiled(bundle.vision, "encode")
    factor = bundle.vision.config.temporal_downsample_factor
    codes = []
    for array in pixels:
        if array.ndim == 4:
            if len(array) < factor:
                raise media.MediaError(
                    f"A clip of {len(array)} frames is shorter than one latent frame of {factor}."
                )
            array = array[: len(array) - len(array) % factor]
        array = media.resize(array, *media.smart_resize(*array.shape[-3:-1], limits))
        batch = media.to_model(array)[None]
        codes.append(np.asarray(encoder(bundle.vision_variables, batch)[0]))
    return codes


def decode(bundle: Bundle, codes: np.ndarray, batch_size: int = 8) -> np.ndarray:
    """Pictures of codes: int32 [N, h, w] -> uint8 [N, H, W, 3], [N, t, h, w] -> [N, T, H, W, 3]."""
    decoder = _compiled(bundle.vision, "decode")
    batch_size = min(batch_size, len(codes))
    pixels = []
    for start in range(0, len(codes), batch_size):
        batch = codes[start : start + batch_size]
        # The last batch repeats a picture, so that one shape is compiled.
        missing = batch_size - len(batch)
        padded = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        out = decoder(bundle.vision_variables, padded)[: len(batch)]
        pixels.append(media.to_uint8(np.asarray(out)))
    return np.concatenate(pixels)
