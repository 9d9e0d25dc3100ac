"""Hostile and unlucky files: one sentence each, which names no folder."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from emu3_jax.data import media
from emu3_jax.demo import uploads
from emu3_jax.demo.uploads import read_upload

LIMITS = media.PixelLimits(64 * 64, 64 * 64, 8)


def bomb(side):
    """A PNG of side x side white pixels, whose file is small."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    packer = zlib.compressobj(9)
    row = b"\0" + b"\xff" * (side // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def saved(pixels, kind, **more):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **more)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "the file is empty or gone; upload it again"),
        (b"text", "not an image in any of the formats"),
        (saved(np.zeros((99, 99, 3), np.uint8), "PNG")[:-60], "the image cannot be decoded"),
        (bomb(10_000), "10000x10000 pixels is more than the limit of 67108864"),
        (bomb(40_000), "the image cannot be opened (Image size (1600000000 pixels) exceeds limit"),
        (saved(np.zeros((10, 99, 3), np.uint8), "PNG"), "has the aspect ratio 9.90; at most 5"),
        (b"\xff\xd8" + bytes(uploads.MAX_BYTES), "20.0 MiB are more than the limit of 20 MiB"),
    ],
    ids=["empty", "text", "cut", "bomb", "larger bomb", "long", "large"],
)
def test_what_cannot_be_read_is_named(tmp_path, content, words):
    path = tmp_path / "my photo.png"
    path.write_bytes(content)
    with pytest.raises(media.MediaError, match="^my photo.png: ") as error:
        read_upload(str(path), LIMITS)
    assert words in str(error.value) and str(tmp_path) not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_photograph_of_twelve_megapixels_is_read(tmp_path):
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 256, (30, 40, 3), np.uint8), np.ones((100, 100, 1), np.uint8))
    path = tmp_path / "photo.jpg"
    path.write_bytes(saved(pixels, "JPEG"))
    pixels = read_upload(str(path), LIMITS)
    assert pixels.shape[0] * pixels.shape[1] == pytest.approx(64 * 64, rel=0.2)


def test_what_is_gone_is_named():
    with pytest.raises(media.MediaError, match="^gone.png: the file is empty or gone"):
        read_upload("/somewhere/gone.png", LIMITS)
