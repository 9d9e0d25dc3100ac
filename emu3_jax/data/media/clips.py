"""Video files and animated images to uint8 arrays, sampled by time stamps."""

import io

import numpy as np

from emu3_jax.data.media.images import (
    MediaSource,
    describe,
    frame_count,
    open_image,
    read_content,
    to_rgb,
)
from emu3_jax.data.media.sizes import MediaError

# All frames of one clip together: 1.5 GiB when decoded.
MAX_CLIP_PIXELS = 1 << 29
# In seconds: containers round time stamps to a millisecond or to a tick.
TIME_TOLERANCE = 0.002
# Browsers show a GIF frame without a duration for a tenth of a second.
DEFAULT_FRAME_SECONDS = 0.1


def read_video(
    source: MediaSource,
    fps: float | None = None,
    max_frames: int | None = None,
    name: str | None = None,
) -> tuple[np.ndarray, float, float]:
    """(uint8 [T,H,W,3], frames per second, seconds) of a video or an animated WebP, GIF or PNG.

    With `fps`, the result has the frame shown at each multiple of 1/fps, by time stamps; without,
    every frame. `max_frames` cuts off the end, before decoding if possible. `seconds` is the length
    of the returned clip. Raises MediaError for anything unreadable.
    """
    label = describe(source, name)
    if fps is not None and fps <= 0 or max_frames is not None and max_frames < 1:
        raise ValueError(f"fps and max_frames must be positive, found {fps} and {max_frames}")
    content = read_content(source, label)
    if _is_image_file(content):
        frames, fps = _animation_frames(content, label, fps)
    else:
        frames = _film_frames(content, label)
    try:
        return _sample(frames, fps, max_frames, label)
    except MediaError:
        raise
    except Exception as error:
        raise MediaError(f"{label}: the clip cannot be decoded ({error})") from error


def _is_image_file(content: bytes) -> bool:
    if content[:4] == b"RIFF":
        return content[8:12] == b"WEBP"
    return content[:4] == b"GIF8" or content[:8] == b"\x89PNG\r\n\x1a\n"


def _animation_frames(content: bytes, label: str, fps: float | None):
    """Frames (start, end in seconds, get) of an animation, and the sampling rate.

    Encoders merge equal frames into one of longer duration. An animation whose frames differ in
    duration is therefore resampled at the rate of its shortest frame.
    """
    image = open_image(content, label)
    count = frame_count(image, label)
    if count * image.width * image.height > MAX_CLIP_PIXELS:
        raise MediaError(_too_long(label, count, image.width, image.height))
    frames, start = [], 0.0
    try:
        for index in range(count):
            image.seek(index)
            image.load()
            shown = float(image.info.get("duration", 0)) / 1000 or DEFAULT_FRAME_SECONDS
            pixels = to_rgb(image)
            frames.append((start, start + shown, lambda pixels=pixels: pixels))
            start += shown
    except Exception as error:
        raise MediaError(f"{label}: frame {len(frames)} cannot be decoded ({error})") from error
    shown = [end - start for start, end, _ in frames]
    # GIF counts in hundredths of a second, so an even rate may vary by one of them.
    if fps is None and max(shown) - min(shown) > 0.0101:
        fps = 1 / min(shown)
    return frames, fps


def _film_frames(content: bytes, label: str):
    """Frames (start, end in seconds, get) of a video, decoded on request."""
    import av  # slow to import, and images do not need it

    try:
        with av.open(io.BytesIO(content)) as container:
            if not container.streams.video:
                raise MediaError(f"{label}: the file holds no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            origin, last = None, None
            for index, frame in enumerate(container.decode(stream)):
                start = index / rate if frame.time is None else frame.time
                origin = start if origin is None else origin
                if last is not None:
                    yield last[0], start - origin, last[1]
                last = (start - origin, lambda frame=frame: _upright(frame))
            if last is not None:
                yield last[0], last[0] + 1 / rate, last[1]
    except MediaError:
        raise
    except (av.FFmpegError, OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(f"{label}: the video cannot be decoded ({reason})") from error


def _upright(frame) -> np.ndarray:
    """A decoded frame as RGB, rotated by the file's display matrix (phones record sideways)."""
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, k=round(frame.rotation / 90) % 4))


def _sample(frames, fps: float | None, max_frames: int | None, label: str):
    chosen, end, step = [], 0.0, None if fps is None else 1 / fps
    for start, end, get in frames:  # noqa: B007 (the last end is the clip's length)
        if step is None:
            chosen.append(get())
        while step is not None and len(chosen) * step < end - TIME_TOLERANCE:
            if chosen and chosen[-1][0] == start:
                chosen.append(chosen[-1])
            else:
                chosen.append((start, get()))
            if len(chosen) == max_frames:
                break
        if chosen:
            height, width = (chosen[-1] if step is None else chosen[-1][1]).shape[:2]
            if len(chosen) * height * width > MAX_CLIP_PIXELS:
                raise MediaError(_too_long(label, len(chosen), width, height))
        if len(chosen) == max_frames:
            break
    if not chosen:
        raise MediaError(f"{label}: the clip has no frames")
    pixels = np.stack(chosen if step is None else [frame for _, frame in chosen])
    seconds = end if step is None else len(chosen) * step
    return pixels, len(chosen) / seconds, seconds


def _too_long(label: str, count: int, width: int, height: int) -> str:
    return (
        f"{label}: {count} frames of {width}x{height} pixels are more than the limit of "
        f"{MAX_CLIP_PIXELS} pixels per clip; set a frame limit or a lower frame rate"
    )
