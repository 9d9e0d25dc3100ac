"""Image files of any mode to uint8 arrays; a bad file raises a MediaError that names it."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from emu3_jax.data.media.sizes import MAX_IMAGE_PIXELS, MediaError, resized
from emu3_jax.foreign import failures_as

MAX_FILE_BYTES = 1 << 29
"""512 MiB: an uncompressed image of the most pixels with four channels of 16 bits."""
FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI",
    "SGI", "TGA", "TIFF", "WEBP",
)  # fmt: skip
"""What Pillow may take a file for; the bytes choose, not the ending.

Pillow knows more: PostScript and Windows metafiles go to an interpreter, IPTC opens a file of any
kind inside it, and others are rarely images.
"""
# EXIF orientation (TIFF 6.0, tag 274) -> what turns the image upright; 1 is upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

MediaSource = str | os.PathLike | bytes
"""A path, or the content of a file."""


def describe(source: MediaSource, name: str | None = None) -> str:
    """The name of a source in messages."""
    if name is not None:
        return name
    return f"<{len(source)} bytes>" if isinstance(source, bytes) else os.fspath(source)


def read_content(source: MediaSource, label: str) -> bytes:
    """The bytes of a source; MediaError if there are none or more than `MAX_FILE_BYTES`."""
    if not isinstance(source, bytes):
        source = _file_content(Path(source), label)
    if not source:
        raise MediaError(f"{label}: the file is empty")
    return source


def _file_content(path: Path, label: str) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe would wait, a device has no end
            raise MediaError(f"{label}: cannot be read (not a file)")
        with path.open("rb") as file:
            check_file_size(os.fstat(file.fileno()).st_size, label)
            return file.read()
    except MediaError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{label}: cannot be read ({reason})") from error


def check_file_size(size: int, label: str) -> None:
    """MediaError for a media file of more than `MAX_FILE_BYTES`; before it is held."""
    if size > MAX_FILE_BYTES:
        raise MediaError(f"{label}: {size} bytes are more than the limit of {MAX_FILE_BYTES}")


def open_image(content: bytes, label: str) -> Image.Image:
    """The opened, not yet decoded image; its size is checked before decoding needs memory."""
    with failures_as(lambda why: MediaError(f"{label}: the image cannot be opened ({why})")):
        try:
            image = _opened(content)
        except Image.UnidentifiedImageError as error:
            raise MediaError(
                f"{label}: not an image in any of the formats {', '.join(FORMATS)}"
            ) from error
    width, height = image.size
    if width < 1 or height < 1:
        raise MediaError(f"{label}: the image has no pixels ({width}x{height})")
    if width * height > MAX_IMAGE_PIXELS:
        raise MediaError(
            f"{label}: {width}x{height} pixels is more than the limit of {MAX_IMAGE_PIXELS}"
        )
    return image


def _opened(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except Exception:
        # libavif refuses an image for its EXIF block, so the block's item gets another type, of
        # the same length, that nobody reads.
        if content[4:8] == b"ftyp" and b"Exif" in content:
            return Image.open(io.BytesIO(content.replace(b"Exif", b"none", 1)), formats=FORMATS)
        raise


def frame_count(image: Image.Image, label: str) -> int:
    """Frames of an opened image or animation, at least 1; MediaError if its blocks are damaged."""
    with failures_as(lambda why: MediaError(f"{label}: the frames cannot be counted ({why})")):
        return getattr(image, "n_frames", 1)


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
    with failures_as(lambda why: MediaError(f"{label}: the image cannot be decoded ({why})")):
        image.load()
        turn = UPRIGHT.get(_orientation(image))
        image = _rgb(image if turn is None else image.transpose(turn))
    if fit is None:
        return np.array(image)
    try:
        return np.array(resized(image, *fit(image.height, image.width)))
    except MediaError as error:
        raise MediaError(f"{label}: {error}") from error


def _orientation(image: Image.Image) -> object:
    """The orientation that a decoded image states; 1 if its EXIF block cannot be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow does not check what the block holds
        return 1
