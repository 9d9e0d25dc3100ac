"""Image files that stand in a document or a conversation."""

import functools

import numpy as np

from emu3_jax.data import media
from emu3_jax.data.codec import vision_codec
from emu3_jax.interop.bundle import Bundle
from emu3_jax.models.vision.tokenizer import VisionTokenizerConfig
from emu3_jax.sequence import Image


def read_pixels(file: str, limits: media.PixelLimits, config: VisionTokenizerConfig) -> np.ndarray:
    """An image file, uint8 [H, W, 3], in the size that the vision tokenizer takes.

    Raises:
      MediaError: names a file that cannot be used.
    """
    pixels = media.read_image(file, fit=functools.partial(media.smart_resize, limits=limits))
    try:
        return vision_codec.whole_tokens(config, pixels)
    except ValueError as error:
        raise media.MediaError(f"{file}: {error}") from error


def encoded(bundle: Bundle, pixels: np.ndarray) -> Image:
    """The codes of an image of `read_pixels`."""
    tokenizer = (bundle.vision, bundle.vision_variables)
    return Image(vision_codec.encode(tokenizer, [pixels], 1)[0])
