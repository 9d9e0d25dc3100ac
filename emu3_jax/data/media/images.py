"""Image files of any mode to uint8 arrays; a bad file raises a MediaError that names it."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from emu3_jax.data.media.sizes import MediaError

# 8192 x 8192. A decoded image of this size takes 192 MiB. A larger one is more likely a
# decompression bomb; Pillow itself warns from 89 million pixels on.
MAX_IMAGE_PIXELS = 1 << 26

MediaSource = str | os.PathLike | bytes


def describe(source: MediaSource, name: str | None = None) -> str:
    """The name of a source in messages."""
    if name is not None:
        return name
    return f"<{len(source)} bytes>" if isinstance(source, bytes) else os.fspath(source)


def read_content(source: MediaSource, label: str) -> bytes:
    """The bytes of a source; MediaError if there are none."""
    if not isinstance(source, bytes):
        try:
            source = Path(source).read_bytes()
        except OSError as error:
            raise MediaError(f"{label}: cannot be read ({error.strerror or error})") from error
    if not source:
        raise MediaError(f"{label}: the file is empty")
    return source


def open_image(content: bytes, label: str) -> Image.Image:
    """The opened, not yet decoded image; its size is checked before decoding needs memory."""
    try:
        image = Image.open(io.BytesIO(content))
    except Image.UnidentifiedImageError as error:
        raise MediaError(f"{label}: not an image in any format that Pillow reads") from error
    except Exception as error:  # hostile bytes can make decoders raise anything
        raise MediaError(f"{label}: the image cannot be opened ({error})") from error
    width, height = image.size
    if width < 1 or height < 1:
        raise MediaError(f"{label}: the image has no pixels ({width}x{height})")
    if width * height > MAX_IMAGE_PIXELS:
        raise MediaError(
            f"{label}: {width}x{height} pixels is more than the limit of {MAX_IMAGE_PIXELS}"
        )
    return image


def to_rgb(image: Image.Image) -> np.ndarray:
    """Any Pillow mode -> uint8 [H,W,3]; transparency over white, 16 bits scaled to 8 bits."""
    return np.array(_rgb(image))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit greyscale; Pillow also reads some of it as 32-bit "I"
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no stated range")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def read_image(
    source: MediaSource,
    name: str | None = None,
    fit: Callable[[int, int], tuple[int, int]] | None = None,
) -> np.ndarray:
    """uint8 [H,W,3] of an image file, rotated upright by its EXIF orientation.

    CMYK, palette, grey and 16-bit images become 8-bit RGB, transparency is laid over white, and an
    animated file gives its first frame. `fit` maps (height, width) to the size to return; the
    result equals `resize` of the whole image, which is then never copied into an array. Raises
    MediaError for anything unreadable.
    """
    label = describe(source, name)
    image = open_image(read_content(source, label), label)
    try:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        image = _rgb(image)
    except Exception as error:
        raise MediaError(f"{label}: the image cannot be decoded ({error})") from error
    if fit is not None:
        height, width = fit(image.height, image.width)
        if (height, width) != (image.height, image.width):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.array(image)
