"""Images and animations with random damage end in pixels or in a MediaError, within bounds."""

import io
import os
import warnings

import numpy as np
import pytest
from PIL import Image

from emu3_jax.data import media

STILLS = (
    "AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "SGI", "TGA", "TIFF",
)  # fmt: skip
ANIMATIONS = ("GIF", "PNG", "WEBP")
KINDS = [(kind, False) for kind in (*STILLS, "WEBP")] + [(kind, True) for kind in ANIMATIONS]
# Of the slow test, all kinds together: EMU3_JAX_MUTATIONS=100000 for a long one.
MUTATIONS = int(os.environ.get("EMU3_JAX_MUTATIONS", 10_000))


def whole(kind: str, animated: bool) -> bytes:
    """A file of one still of 32 x 24 pixels, or of four frames, smooth so that it is small."""
    y, x = np.mgrid[:24, :32]
    frames = [np.stack([8 * x, 10 * y, 60 * t + x], -1).astype(np.uint8) for t in range(4)]
    first, *others = map(Image.fromarray, frames)
    options = dict(save_all=True, append_images=others, duration=100) if animated else {}
    if kind in ("JPEG", "PNG", "WEBP", "AVIF"):
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    content = io.BytesIO()
    first.save(content, kind, **options)
    return content.getvalue()


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Up to eight times: bytes replaced, a run filled, removed, repeated, or the end cut off.

    Half of it happens in the first 200 bytes, where headers state sizes and offsets.
    """
    data = bytearray(content)
    for _ in range(rng.integers(1, 9)):
        reach = min(len(data), 200) if rng.random() < 0.5 else len(data)
        at, size = int(rng.integers(0, max(reach, 1))), int(rng.integers(1, 9))
        match rng.integers(0, 6):
            case 0:
                data[at : at + 1] = bytes([rng.integers(0, 256)])
            case 1:
                data[at : at + size] = bytes([rng.choice([0, 1, 127, 128, 255])]) * size
            case 2:
                data[at : at + size] = rng.bytes(size)
            case 3:
                del data[at : at + size]
            case 4:
                data[at:at] = data[at : at + 8 * size]
            case 5 if rng.random() < 0.3:
                del data[at:]
    return bytes(data)


def outcome(content: bytes, animated: bool) -> str:
    """Either "pixels" or "MediaError"; anything else fails."""
    try:
        pixels = media.read_video(content)[0] if animated else media.read_image(content)
    except media.MediaError as error:
        assert "\n" not in str(error) and str(error).startswith(f"<{len(content)} bytes>: ")
        return "MediaError"
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 + animated and pixels.size
    assert pixels.shape[-1] == 3
    limit = media.MAX_CLIP_PIXELS if animated else media.MAX_IMAGE_PIXELS
    assert pixels.size // 3 <= limit
    return "pixels"


def check(kind: str, animated: bool, count: int, seed: int) -> dict[str, int]:
    content, rng = whole(kind, animated), np.random.default_rng(seed)
    assert outcome(content, animated) == "pixels"
    found = {"pixels": 0, "MediaError": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on what it mends
        for _ in range(count):
            found[outcome(mutated(content, rng), animated)] += 1
    return found


@pytest.mark.parametrize("kind, animated", KINDS)
def test_a_sample_of_mutations(kind, animated):
    found = check(kind, animated, 30, seed=0)
    assert found["pixels"] + found["MediaError"] == 30


@pytest.mark.slow
@pytest.mark.parametrize("kind, animated", KINDS)
def test_many_mutations(kind, animated):
    found = check(kind, animated, MUTATIONS // len(KINDS), seed=1)
    assert found["MediaError"] and found["pixels"]
