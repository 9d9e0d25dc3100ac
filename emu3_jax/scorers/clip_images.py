"""Images as CLIP reads them: three published rules, each float32 [side, side, 3], normalised.

torchvision_crop   OpenAI's and OpenCLIP's `preprocess`: short side to `side` (bicubic, in bytes),
                   centre crop whose odd margin is rounded half to even
transformers_crop  transformers' CLIPImageProcessor: the same, an odd margin rounded down. With
                   Pillow, as in versions before 5 and CLIPImageProcessorPil since
longest_side       HPSv2's: long side to `side` (bicubic, in floats that may leave [0, 1]), centred
                   on black. As with torchvision 0.17 or newer, which smooths what it shrinks
"""

import numpy as np
from PIL import Image

from emu3_jax.data import media
from emu3_jax.data.media.sizes import MediaError

# clip.load of OpenAI's code: of its 400 million images, red, green, blue in [0, 1].
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def torchvision_crop(image_HWC: np.ndarray, side: int) -> np.ndarray:
    """uint8 [H, W, 3] → float32 [side, side, 3]; MediaError if it is no image or far too oblong."""
    pixels = _short_side(image_HWC, side)
    return _normalised(_cropped(pixels, side, [round(n / 2) for n in _margins(pixels, side)]))


def transformers_crop(image_HWC: np.ndarray, side: int) -> np.ndarray:
    """As `torchvision_crop`, by transformers' rule."""
    pixels = _short_side(image_HWC, side)
    return _normalised(_cropped(pixels, side, [n // 2 for n in _margins(pixels, side)]))


def longest_side(image_HWC: np.ndarray, side: int) -> np.ndarray:
    """As `torchvision_crop`, by HPSv2's rule.

    HPSv2 leaves an oblong image whose long side is `side` already as it is, and then fails; here it
    is padded as well.
    """
    height, width, _ = _checked(image_HWC).shape
    scale = side / max(height, width)
    size = [max(round(n * scale), 1) for n in (height, width)]
    values = image_HWC.astype(np.float32) / np.float32(255)
    if scale != 1:
        channels = [Image.fromarray(channel) for channel in np.moveaxis(values, -1, 0)]
        smaller = [c.resize(size[::-1], Image.Resampling.BICUBIC) for c in channels]
        values = np.stack([np.asarray(channel) for channel in smaller], axis=-1)
    before = [(side - n) // 2 for n in size]
    padding = [(b, side - n - b) for b, n in zip(before, size, strict=True)]
    return (np.pad(values, (*padding, (0, 0))) - MEAN) / DEVIATION


def _checked(image_HWC: np.ndarray) -> np.ndarray:
    shape = getattr(image_HWC, "shape", ())
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or image_HWC.dtype != np.uint8:
        kind = getattr(image_HWC, "dtype", type(image_HWC).__name__)
        raise MediaError(f"an image to score must be uint8 [H, W, 3], found {kind} {list(shape)}")
    return image_HWC


def _short_side(image_HWC: np.ndarray, side: int) -> np.ndarray:
    height, width, _ = _checked(image_HWC).shape
    short = min(height, width)
    return media.resize(image_HWC, side * height // short, side * width // short)


def _margins(pixels_HWC: np.ndarray, side: int) -> list[int]:
    return [n - side for n in pixels_HWC.shape[:2]]


def _cropped(pixels_HWC: np.ndarray, side: int, corner: list[int]) -> np.ndarray:
    top, left = corner
    return pixels_HWC[top : top + side, left : left + side]


def _normalised(pixels_HWC: np.ndarray) -> np.ndarray:
    return (pixels_HWC.astype(np.float32) / np.float32(255) - MEAN) / DEVIATION
