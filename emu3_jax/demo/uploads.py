"""Files of visitors: what is read, and the one sentence that refuses the rest."""

import functools
import pathlib
import threading

import numpy as np

from emu3_jax.data import media

# 20 MiB: photographs of 50 megapixels as JPEG.
MAX_BYTES = 20 << 20
LIMITS = (
    f"Images up to {MAX_BYTES >> 20} MiB and {media.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels, "
    "at most five times as long as they are wide."
)
# One image at a time is held in full: it may take hundreds of megabytes.
_decoding = threading.Lock()


def read_upload(path: str, limits: media.PixelLimits) -> np.ndarray:
    """An uploaded image, uint8 [H, W, 3], resized within the limits.

    Raises:
      MediaError: names the file, without its folder, and what is wrong with it.
    """
    file = pathlib.Path(path)
    size = file.stat().st_size if file.is_file() else 0
    if not size:
        raise media.MediaError(f"{file.name}: the file is empty or gone; upload it again")
    if size > MAX_BYTES:
        raise media.MediaError(
            f"{file.name}: {size / 2**20:.1f} MiB are more than the limit of {MAX_BYTES >> 20} MiB"
        )
    fit = functools.partial(media.smart_resize, limits=limits)
    with _decoding:
        return media.read_image(file.read_bytes(), file.name, fit)
