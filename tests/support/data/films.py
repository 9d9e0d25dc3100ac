"""Small films in any container, as bytes, and what can be wrong with them."""

import io
import struct
from fractions import Fraction

import numpy as np
from PIL import Image


def clip_pixels(frames=16, height=48, width=64) -> np.ndarray:
    """uint8 [T,H,W,3]: red grows to the right, green downwards, blue with time."""
    y, x = np.mgrid[:height, :width]
    return np.stack([np.stack([3 * x, 4 * y, 10 * t + 0 * x], -1) for t in range(frames)]).astype(
        np.uint8
    )


def animation(kind: str, frames: np.ndarray, duration) -> bytes:
    """An animated GIF, PNG or WEBP; milliseconds per frame."""
    buffer = io.BytesIO()
    first, *rest = (Image.fromarray(frame) for frame in frames)
    first.save(buffer, kind, save_all=True, append_images=rest, duration=duration, loop=0)
    return buffer.getvalue()


def film(
    container="mp4",
    codec="libx264",
    pixels=None,
    fps=8,
    matrix=None,
    aspect=None,
    left_out=(),
    cover=False,
    times=None,
    between=0,
) -> bytes:
    """A film of `pixels` uint8 [T,H,W,3]; of H.264 each frame is a key frame.

    Args:
      matrix: display matrix, nine integers.
      aspect: width of a pixel over its height.
      left_out: numbers of packets that are not written.
      cover: the film has a cover image as well.
      times: when each frame starts, in units of 1 / fps; the frames beyond them are left out.
      between: of H.264, up to so many frames in a row are stored after a later one.
    """
    import av

    pixels = clip_pixels() if pixels is None else pixels
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as writer:
        if cover:
            image = writer.add_stream("mjpeg", rate=1)
            image.width, image.height, image.pix_fmt = 32, 32, "yuvj420p"
            image.disposition = av.stream.Disposition.attached_pic
        stream = writer.add_stream(codec, rate=fps)
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "10", "g": "99" if between else "1", "bf": str(between)}
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        if matrix is not None:
            stream.set_display_matrix(matrix)
        if cover:
            black = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            writer.mux(image.encode(black) + image.encode())
        packets = []
        for time, frame in zip(times or range(len(pixels)), pixels, strict=False):
            frame = av.VideoFrame.from_ndarray(frame, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, fps)
            packets += stream.encode(frame)
        for number, packet in enumerate(packets + stream.encode()):
            if number not in left_out:
                writer.mux(packet)
    return buffer.getvalue()


def _boxes(content: bytes) -> list[bytes]:
    boxes, position = [], 0
    while position < len(content):
        size = struct.unpack_from(">I", content, position)[0]
        boxes.append(content[position : position + size])
        position += size
    return boxes


def cover_first(content: bytes) -> bytes:
    """An MP4 whose cover image is its first stream: its tags come before its tracks."""
    boxes = _boxes(content)
    for number, box in enumerate(boxes):
        if box[4:8] == b"moov":
            parts = sorted(_boxes(box[8:]), key=lambda part: part[4:8] == b"trak")
            boxes[number] = box[:8] + b"".join(parts)
    return b"".join(boxes)


def index_first(content: bytes) -> bytes:
    """An MP4 with its index before its frames, as for the web."""
    boxes = _boxes(content)
    index = next(box for box in boxes if box[4:8] == b"moov")
    table = index.index(b"stco") + 8
    count = struct.unpack_from(">I", index, table)[0]
    offsets = struct.unpack_from(f">{count}I", index, table + 4)
    moved = struct.pack(f">{count}I", *(offset + len(index) for offset in offsets))
    moved = index[: table + 4] + moved + index[table + 4 + len(moved) :]
    rest = [box for box in boxes if box is not index]
    return rest[0] + moved + b"".join(rest[1:])


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with one to four kinds of damage: flipped, cut off, taken out, repeated, zeroed."""
    for _ in range(rng.integers(1, 5)):
        start = int(rng.integers(0, max(1, len(content))))
        end = start + int(rng.integers(1, max(2, len(content) // 8)))
        kind = rng.integers(0, 6)
        if kind < 2:
            changed = bytearray(content)
            for index in rng.integers(0, max(1, len(content)), 4 if kind else 1):
                if changed:
                    changed[index] = rng.integers(0, 256)
            content = bytes(changed)
        elif kind == 2:
            content = content[:start]
        elif kind == 3:
            content = content[:start] + content[end:]
        elif kind == 4:
            content = content[:end] + content[start:]
        else:
            content = content[:start] + bytes(len(content[start:end])) + content[end:]
    return content
