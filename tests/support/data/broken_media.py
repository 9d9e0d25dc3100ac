"""An animated GIF, whole and cut."""

import io

import numpy as np
from PIL import Image


def animated_gif() -> bytes:
    """Four frames of noise, 64 x 64 pixels, an eighth of a second each."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    first, *others = map(Image.fromarray, pixels)
    content = io.BytesIO()
    first.save(content, "GIF", save_all=True, append_images=others, duration=125)
    return content.getvalue()


def cut_gif() -> bytes:
    """It ends inside the descriptor of its last frame, which is read to count the frames."""
    whole = animated_gif()
    return whole[: whole.rindex(b"\x21\xf9\x04") + 8 + 3]  # behind the control extension
