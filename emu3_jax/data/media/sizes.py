"""Images as arrays: size limits, resizing, and conversion to model inputs."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

MAX_CLIP_PIXELS = 1 << 29
"""All frames of one clip together, at the size at which they are held: 1.5 GiB of RGB."""
MAX_IMAGE_PIXELS = 1 << 26
"""8192 x 8192 pixels, which take 192 MiB.

A file that states more is more likely a decompression bomb; Pillow itself warns from 89 million
pixels on.
"""
MAX_ASPECT = 5.0  # long side over short side; a constant of the released image processor


class MediaError(ValueError):
    """An image or clip that cannot be used; the sentence names the file and the reason."""


@dataclass(frozen=True)
class PixelLimits:
    """Limits on the area of an image for the vision tokenizer.

    The defaults are those of the released preprocessor_config.json.

    Attributes:
      min_pixels, max_pixels: smaller images are enlarged, larger ones reduced to this area.
      spatial_factor: the vision tokenizer's downsampling; sides become multiples of it.
      area: unless 0, the image is first scaled to about this many pixels, as the official
        fine-tuning data is (emu3/train/prepare_data.py; 518,400 there).
    """

    min_pixels: int = 512 * 512
    max_pixels: int = 1024 * 1024
    spatial_factor: int = 8
    area: int = 0

    def __post_init__(self):
        if self.area < 0:
            raise ValueError(f"pixel limits: expected an area of 0 or more, found {self.area}")
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(
                f"pixel limits: expected 0 < min_pixels <= max_pixels, found {self.min_pixels} "
                f"and {self.max_pixels}"
            )


def smart_resize(height: int, width: int, limits: PixelLimits = PixelLimits()) -> tuple[int, int]:
    """The released resize rule: (height, width) in pixels, multiples of the spatial factor.

    With `limits.area` both sides are first scaled alike, to whole pixels. Then each side goes
    to its nearest multiple (half to even); an area above `max_pixels` is scaled down (sides
    floored), one below `min_pixels` is scaled up (sides rounded up). Raises MediaError for a
    side below the factor or an aspect ratio above `MAX_ASPECT`.
    """
    factor = limits.spatial_factor
    if limits.area and height > 0 and width > 0:
        scale = (limits.area / (height * width)) ** 0.5
        height, width = round(height * scale), round(width * scale)
    if height < factor or width < factor:
        raise MediaError(
            f"an image of {width}x{height} pixels is too small: each side needs at least {factor}"
        )
    aspect = max(height, width) / min(height, width)
    if aspect > MAX_ASPECT:
        raise MediaError(
            f"an image of {width}x{height} pixels has the aspect ratio {aspect:.2f}; "
            f"at most {MAX_ASPECT:g} is allowed"
        )
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > limits.max_pixels:
        beta = (height * width / limits.max_pixels) ** 0.5
        new_height = int(height / beta // factor) * factor
        new_width = int(width / beta // factor) * factor
    elif new_height * new_width < limits.min_pixels:
        beta = (limits.min_pixels / (height * width)) ** 0.5
        new_height = -int(-height * beta // factor) * factor
        new_width = -int(-width * beta // factor) * factor
    if new_height < factor or new_width < factor:
        raise MediaError(
            f"an image of {width}x{height} pixels does not fit into {limits.max_pixels} pixels "
            f"with sides of at least {factor}"
        )
    return new_height, new_width


def check_clip(frames: int, height: int, width: int, label: str) -> None:
    """Raises MediaError for a clip that would take more than `MAX_CLIP_PIXELS` at this size."""
    if frames * height * width > MAX_CLIP_PIXELS:
        raise MediaError(
            f"{label}: {frames} frames of {width}x{height} pixels are more than the limit of "
            f"{MAX_CLIP_PIXELS} pixels per clip; set a frame limit or a lower frame rate"
        )


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic (PIL) resize of uint8 [H,W,3] or [T,H,W,3] to the given height and width.

    Raises MediaError for an image or a frame of more than `MAX_IMAGE_PIXELS`, and for a clip that
    would be too large then (`check_clip`).
    """
    if pixels.shape[-3:-1] == (height, width):
        return pixels
    if pixels.ndim == 4:
        check_clip(len(pixels), height, width, "the resized clip")
        return np.stack([resize(frame, height, width) for frame in pixels])
    return np.asarray(resized(Image.fromarray(pixels), height, width))


def resized(image: Image.Image, height: int, width: int) -> Image.Image:
    """`resize` of a Pillow image."""
    if image.size == (width, height):
        return image
    if height < 1 or width < 1 or height * width > MAX_IMAGE_PIXELS:
        raise MediaError(
            f"an image of {image.width}x{image.height} pixels would become {width}x{height}; "
            f"expected 1 to {MAX_IMAGE_PIXELS} pixels"
        )
    return image.resize((width, height), Image.Resampling.BICUBIC)


def center_square(pixels: np.ndarray) -> np.ndarray:
    """The largest centred square of [..., H, W, 3]."""
    height, width = pixels.shape[-3:-1]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[..., top : top + side, left : left + side, :]


# The 256 values in the released order: bytes times 1/255 in float64, rounded to float32, then
# normalised there by mean and deviation 0.5. Another order changes last bits, which can change
# codes.
_UNIT = (np.arange(256) * (1 / 255)).astype(np.float32)
_MODEL_VALUES = (_UNIT - np.float32(0.5)) / np.float32(0.5)


def to_model(pixels: np.ndarray) -> np.ndarray:
    """uint8 [0,255] -> float32 [-1,1], the values of the released image processor bit for bit."""
    return _MODEL_VALUES[pixels]


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """float [-1,1] -> uint8; clipped, then truncated, not rounded (released post-processing)."""
    scaled = (np.asarray(pixels, np.float32) * np.float32(0.5) + np.float32(0.5)) * np.float32(255)
    return np.clip(scaled, 0, 255).astype(np.uint8)
