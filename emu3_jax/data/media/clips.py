"""Video files and animated images to uint8 arrays, sampled by time stamps."""

import bisect
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from emu3_jax.data.media import containers
from emu3_jax.data.media.containers import MISSING_FRAME, TIME_TOLERANCE, Survey
from emu3_jax.data.media.images import (
    MediaSource,
    describe,
    frame_count,
    open_image,
    read_content,
    to_rgb,
)
from emu3_jax.data.media.sizes import MAX_IMAGE_PIXELS, MediaError, check_clip, resize
from emu3_jax.foreign import MissingPackageError

# In seconds: a longer time in which no frame is shown is a hole. Containers without a length for
# each frame leave out frames that repeat the last one, so a short one is no sign of damage.
HOLE_SECONDS = 0.5
REORDERED = 16  # frames: no later frame may be stored before more (H.264, H.265)
TICK = 1e-5  # in seconds: less than one of any container
# Browsers show a GIF frame without a duration for a tenth of a second.
DEFAULT_FRAME_SECONDS = 0.1

# Start and end in seconds from the first frame, and a function that gives uint8 [H,W,3].
Frame = tuple[float, float, Callable[[], np.ndarray]]
# (height, width) of a frame -> those at which it is held.
Fit = Callable[[int, int], tuple[int, int]]
# Start and end in seconds from the first frame; None: to the end of the clip.
Part = tuple[float, float | None]
WHOLE: Part = (0.0, None)


def read_video(
    source: MediaSource,
    fps: float | None = None,
    max_frames: int | None = None,
    name: str | None = None,
    fit: Fit | None = None,
    part: Part = WHOLE,
) -> tuple[np.ndarray, float, float]:
    """(uint8 [T,H,W,3], frames per second, seconds) of a video or an animated WebP, GIF or PNG.

    Frames are as a player shows them: turned and mirrored by the file's display matrix, with square
    pixels. With `fps`, the result has the frame shown at each multiple of 1/fps, by time stamps;
    without, every frame. `max_frames` cuts off the end, before decoding if possible. `fit` maps
    (height, width) to the size to return; frames are resized one by one, so that a clip is never
    held at another size. Of a `part` the result is as of a clip that is that part alone: with
    `fps` the times are counted from its start, without, it has all frames that are shown in it.
    Frames before it are decoded, not held; none after it is decoded. `seconds` is the length of
    the returned clip. Raises MediaError for anything unreadable, cut short or with holes, for more
    than `MAX_CLIP_PIXELS`, and for a part that starts after the end.
    """
    label = describe(source, name)
    if fps is not None and fps <= 0 or max_frames is not None and max_frames < 1:
        raise ValueError(f"fps and max_frames must be positive, found {fps} and {max_frames}")
    check_part(part)
    content = read_content(source, label)
    try:
        expected = 0
        if _is_image_file(content):
            frames = _within(_decoded_animation(content, label, fit), part, fps is None, label)
            if fps is None:
                frames, fps = _held_animation(frames, label, max_frames)
        else:
            survey = containers.survey(content, label)
            frames = _within(_film_frames(content, survey, label, fit), part, fps is None, label)
            expected = _expected(survey, fps, part)
            expected = min(expected, max_frames or expected)
        return _sample(frames, fps, max_frames, expected, label)
    except (MediaError, MissingPackageError):
        raise
    except Exception as error:  # hostile bytes can make decoders raise anything
        reason = containers.reason(error)
        raise MediaError(f"{label}: the clip cannot be decoded ({reason})") from None


def _is_image_file(content: bytes) -> bool:
    if content[:4] == b"RIFF":
        return content[8:12] == b"WEBP"
    return content[:4] == b"GIF8" or content[:8] == b"\x89PNG\r\n\x1a\n"


def check_part(part: Part) -> None:
    """ValueError for a part that is empty or begins before the clip."""
    start, end = part
    if not 0 <= start < math.inf or end is not None and not start < end:
        raise ValueError(f"a part must have 0 <= start < end, found start {start} and end {end}")


def _within(frames: Iterator[Frame], part: Part, whole: bool, label: str) -> Iterator[Frame]:
    """The frames shown in a part, with times counted from its start.

    Args:
      whole: count from the start of the first of these frames instead, and keep the whole length of
        the last one, so that their rate stays that of the film.
    """
    start, end = part
    origin, stop = None, 0.0
    for begin, stop, get in frames:
        if end is not None and begin > end - TIME_TOLERANCE:
            break
        if start and stop < start + TIME_TOLERANCE:
            continue
        if origin is None:
            origin = begin if whole else start
        shown_until = stop if whole or end is None else min(stop, end)
        yield begin - origin, shown_until - origin, get
    if origin is None and start:
        raise MediaError(f"{label}: the clip ends at {stop:.3f} s, before the start {start:g} s")


def _expected(survey: Survey, fps: float | None, part: Part) -> int:
    """How many frames a part of a film has."""
    start, end = part[0], survey.seconds if part[1] is None else min(part[1], survey.seconds)
    if fps is not None:
        return max(0, math.ceil((end - start) * fps))
    first = survey.stamps[0] if survey.stamps else 0.0
    return sum(start <= stamp - first < end for stamp in survey.stamps)


def _held_animation(
    frames: Iterator[Frame], label: str, max_frames: int | None
) -> tuple[list[Frame], float | None]:
    """All frames of an animation, and the rate to sample them at, or None for all of them.

    Encoders merge equal frames into one of longer duration. An animation whose frames differ in
    duration is therefore resampled at the rate of its shortest frame.
    """
    fps, held, durations = None, [], []
    for start, end, get in frames:
        durations.append(end - start)
        # At the rate of the shortest frame, n sampled frames show at most n decoded ones.
        if max_frames is None or len(held) < max_frames:
            check_clip(len(held) + 1, *get().shape[:2], label)
            held.append((start, end, get))
    # GIF counts in hundredths of a second, so an even rate may vary by one of them.
    if durations and max(durations) - min(durations) > 0.0101:
        fps = 1 / min(durations)
    return held, fps


def _decoded_animation(content: bytes, label: str, fit: Fit | None) -> Iterator[Frame]:
    if content[:4] == b"GIF8":
        containers.check_gif(content, label)
    image = open_image(content, label)
    index, start = 0, 0.0
    try:
        for index in range(frame_count(image, label)):
            image.seek(index)
            image.load()
            end = start + (float(image.info.get("duration", 0)) / 1000 or DEFAULT_FRAME_SECONDS)
            pixels = to_rgb(image)
            if fit is not None:
                pixels = resize(pixels, *_fitted(fit, *pixels.shape[:2], label))
            yield start, end, lambda pixels=pixels: pixels
            start = end
    except MediaError:
        raise
    except Exception as error:
        raise MediaError(f"{label}: frame {index} cannot be decoded ({error})") from None


def _film_frames(content: bytes, survey: Survey, label: str, fit: Fit | None) -> Iterator[Frame]:
    """The frames of a video, decoded and converted on request."""
    with containers.open_container(content, label) as container:
        stream = containers.film_stream(container, label)
        stream.thread_type = "AUTO"
        stream.codec_context.options = containers.DECODER_OPTIONS
        aspect = float(stream.sample_aspect_ratio or 1)
        origin, last, count = None, None, 0
        for frame in container.decode(stream):
            lasts = float((frame.duration or 0) * frame.time_base) or 1 / survey.rate
            start = frame.time
            # AVI stores an order of decoding. FFmpeg gives it to the frames as their time, although
            # they leave the decoder in the order of display.
            if survey.kind == "avi" and count < len(survey.stamps):
                start = survey.stamps[count]
            if start is None:
                start = 0.0 if last is None else last[1]
            origin = start if origin is None else origin
            if last is not None:
                _check_gap(last, start, survey, label)
                yield last[0] - origin, start - origin, last[2]
            count += 1
            last = start, start + lasts, lambda frame=frame: _shown(frame, aspect, fit, label)
        if last is None:
            return
        stated = max(survey.stamps, default=0.0)
        if last[0] < stated - MISSING_FRAME / survey.rate - TIME_TOLERANCE:
            raise MediaError(
                f"{label}: the film is damaged: the last of its {len(survey.stamps)} packets "
                f"is for {stated:.3f} s, the last of the {count} frames that can be decoded for "
                f"{last[0]:.3f} s"
            )
        end = survey.end if survey.kind == "mov" and survey.end > last[0] else last[1]
        yield last[0] - origin, end - origin, last[2]


def _check_gap(last: Frame, start: float, survey: Survey, label: str) -> None:
    """Raises MediaError where frames are missing between the last one and that at `start`.

    MP4 states the time of every frame, so that none may be missing, and a frame may be shown for
    long. Elsewhere a long time without a frame is a hole. Where no length is stated, so is a single
    missing frame near the end: a cut takes frames away that are stored after later ones.
    """
    stamps = survey.stamps
    if survey.kind == "mov":
        following = bisect.bisect_right(stamps, last[0] + TICK)
        missing = following < len(stamps) and stamps[following] < start - TICK
    elif survey.kind in containers.WITHOUT_LENGTH and start in stamps[-REORDERED:]:
        usual = float(np.median(np.diff(stamps)))
        missing = start - last[0] > (1 + MISSING_FRAME) * usual
    else:
        missing = abs(start - last[1]) > max(HOLE_SECONDS, 2 / survey.rate)
    if missing:
        raise MediaError(
            f"{label}: the film has a hole: a frame is stated to end at {last[1]:.3f} s, "
            f"and the next one that can be decoded starts at {start:.3f} s"
        )


def _shown(frame: Any, aspect: float, fit: Fit | None, label: str) -> np.ndarray:
    """A decoded frame as RGB, as a player shows it.

    The display matrix turns and mirrors (phones record sideways). `aspect` is the width of a stored
    pixel over its height; the frame becomes that much wider.
    """
    transposed, mirrored, upside_down = _orientation(frame)
    height, width = frame.height, max(1, round(frame.width * aspect))
    if height * width > MAX_IMAGE_PIXELS:
        raise MediaError(
            f"{label}: frames of {width}x{height} pixels are more than the limit of "
            f"{MAX_IMAGE_PIXELS} pixels"
        )
    height, width = (width, height) if transposed else (height, width)
    if fit is not None:
        height, width = _fitted(fit, height, width, label)
    pixels = frame.to_ndarray(format="rgb24")
    pixels = pixels.swapaxes(0, 1) if transposed else pixels
    pixels = pixels[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
    return resize(np.ascontiguousarray(pixels), height, width)


def _fitted(fit: Fit, height: int, width: int, label: str) -> tuple[int, int]:
    try:
        return fit(height, width)
    except MediaError as error:
        raise MediaError(f"{label}: {error}") from error


def _orientation(frame: Any) -> tuple[bool, bool, bool]:
    """Whether a frame is transposed, then mirrored left to right, then turned upside down.

    The matrix is nine int32, row by row (ISO/IEC 14496-12, 6.2.2): a point x, y is shown at
    a x + c y, b x + d y. An angle between the right ones counts as the nearest.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


def _sample(
    frames: Iterator[Frame] | list[Frame],
    fps: float | None,
    max_frames: int | None,
    expected: int,
    label: str,
) -> tuple[np.ndarray, float, float]:
    """What `read_video` returns; a film of too many `expected` frames ends with its first one."""
    chosen, end = [], 0.0
    for _, end, get in frames:  # noqa: B007 (the last end is the clip's length)
        # How many of the times 0, 1 / fps, … lie before the end of this frame and are not yet met.
        times = 1 if fps is None else math.ceil((end - TIME_TOLERANCE) * fps) - len(chosen)
        if max_frames is not None:
            times = min(times, max_frames - len(chosen))
        if times > 0:
            pixels = get()
            check_clip(max(expected, len(chosen) + times), *pixels.shape[:2], label)
            if chosen and pixels.shape != chosen[0].shape:
                raise MediaError(
                    f"{label}: the size of its frames changes from {chosen[0].shape[:2]} to "
                    f"{pixels.shape[:2]} (height, width)"
                )
            chosen += [pixels] * times
        if len(chosen) == max_frames:
            break
    if not chosen or end <= 0:
        raise MediaError(f"{label}: the clip has no frames")
    seconds = end if fps is None else len(chosen) / fps
    return np.stack(chosen), len(chosen) / seconds, seconds
