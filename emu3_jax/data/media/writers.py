"""Arrays to files: PNG, animated WebP, MP4. Writes are atomic.

Paths lie on a disk or in a bucket (gs://…).
"""

import io
import struct
from fractions import Fraction

import numpy as np
from PIL import Image, PngImagePlugin

from emu3_jax.data.media import containers
from emu3_jax.files import write_atomically

# FFmpeg's numbers: matrix, primaries and transfer of BT.709 (ITU-T H.273), luma from 16 to 235.
BT709, VIDEO_RANGE = 1, 1


def write_png(path, pixels: np.ndarray, metadata: dict[str, str] | None = None) -> None:
    """uint8 [H,W,3] as PNG; `metadata` (prompt, seed, …) goes into text chunks of the file."""
    info = PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        info.add_itxt(key, str(value))
    buffer = io.BytesIO()
    Image.fromarray(_checked(pixels, 3)).save(buffer, "PNG", pnginfo=info)
    write_atomically(path, buffer.getvalue())


def write_webp(path, frames: np.ndarray, fps: float) -> None:
    """uint8 [T,H,W,3] as a lossless, endlessly looping animated WebP with exactly T frames.

    Encoders merge equal neighbours, which changes the number of frames. Each frame is therefore
    compressed alone, and this function writes the container (RIFF; WebP container specification).
    """
    frames = _checked(frames, 4)
    height, width = frames.shape[1:3]
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    stamps = [round(1000 * index / fps) for index in range(len(frames) + 1)]
    chunks = _chunk(b"VP8X", bytes([0x02, 0, 0, 0]) + size)  # 0x02: the file is an animation
    chunks += _chunk(b"ANIM", bytes([255, 255, 255, 255, 0, 0]))  # white, looping forever
    for frame, start, end in zip(frames, stamps, stamps[1:], strict=False):
        buffer = io.BytesIO()
        # The fastest setting: a tenth larger than the default and twenty times as fast.
        Image.fromarray(frame).save(buffer, "WEBP", lossless=True, quality=0, method=0)
        duration = struct.pack("<I", end - start)[:3]
        # Position 0,0; 0x02: replace the canvas instead of blending with it.
        head = bytes(6) + size + duration + bytes([0x02])
        chunks += _chunk(b"ANMF", head + buffer.getvalue()[12:])
    write_atomically(path, _chunk(b"RIFF", b"WEBP" + chunks))


def _chunk(name: bytes, payload: bytes) -> bytes:
    return name + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) % 2)


def write_mp4(path, frames: np.ndarray, fps: float) -> None:
    """uint8 [T,H,W,3] as MP4: H.264, yuv420p, BT.709 and stated so.

    Odd sides repeat their last row or column.
    """
    av = containers.film_package()
    frames = _checked(frames, 4)
    frames = np.pad(
        frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge"
    )
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "16"}
        # Stated in the file: players guess by the size of the frames where nothing is stated.
        stream.codec_context.colorspace = BT709
        stream.codec_context.color_primaries = BT709
        stream.codec_context.color_trc = BT709
        stream.codec_context.color_range = VIDEO_RANGE
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=BT709, dst_color_range=VIDEO_RANGE
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    write_atomically(path, buffer.getvalue())


def _checked(pixels: np.ndarray, rank: int) -> np.ndarray:
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim != rank or pixels.shape[-1] != 3 or not pixels.size:
        raise ValueError(
            f"expected uint8 pixels of rank {rank} with 3 channels, found {pixels.dtype} "
            f"{pixels.shape}"
        )
    return np.ascontiguousarray(pixels)
