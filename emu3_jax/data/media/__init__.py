"""Images and clips: from files to uint8 arrays, to model inputs, and back to files.

Every reader takes a path or the file's bytes and returns an array or raises a `MediaError` whose
one sentence names the file. Files are written atomically.
"""

from emu3_jax.data.media.clips import read_video
from emu3_jax.data.media.images import (
    FORMATS,
    MAX_FILE_BYTES,
    MediaSource,
    check_file_size,
    read_image,
)
from emu3_jax.data.media.sizes import (
    MAX_CLIP_PIXELS,
    MAX_IMAGE_PIXELS,
    MediaError,
    PixelLimits,
    center_square,
    resize,
    smart_resize,
    to_model,
    to_uint8,
)
from emu3_jax.data.media.writers import write_mp4, write_png, write_webp

__all__ = [
    "FORMATS",
    "MAX_CLIP_PIXELS",
    "MAX_FILE_BYTES",
    "MAX_IMAGE_PIXELS",
    "MediaError",
    "MediaSource",
    "PixelLimits",
    "center_square",
    "check_file_size",
    "read_image",
    "read_video",
    "resize",
    "smart_resize",
    "to_model",
    "to_uint8",
    "write_mp4",
    "write_png",
    "write_webp",
]
