"""One raw item to the pixels and text of a record, or the reason why it is skipped."""

import dataclasses
import functools
import itertools
import math
import zlib
from typing import Any

import numpy as np

from emu3_jax.data import media
from emu3_jax.data.media import MediaError, PixelLimits
from emu3_jax.data.media.containers import TIME_TOLERANCE
from emu3_jax.data.sources import MEDIA, RawItem
from emu3_jax.data.sources.source import parts_of
from emu3_jax.data.tokens.preference_pairs import documents_of
from emu3_jax.data.tokens.records import Counts, Record
from emu3_jax.sequence import Grammar, Image, Segment, Text, Turn, Video, chat_document


@dataclasses.dataclass(frozen=True)
class MediaRules:
    """How media are read: pixel limits, frame rate (None: the clip's own), frame limit, and the
    vision tokenizer's temporal factor."""

    limits: PixelLimits
    temporal_factor: int
    fps: float | None = None
    max_frames: int | None = None


@dataclasses.dataclass
class Medium:
    """An image or clip: uint8 pixels before encoding, codes [h,w] or [t,h,w] after it."""

    pixels: np.ndarray | None
    fps: float = 0.0
    seconds: float = 0.0
    codes: np.ndarray | None = None

    def take(self, codes: np.ndarray) -> None:
        """Stores the codes and drops the pixels."""
        self.codes, self.pixels = codes, None

    def segment(self) -> Image | Video:
        """These codes as a segment of a document."""
        if self.codes.ndim == 2:
            return Image(self.codes)
        return Video(self.codes, self.fps, self.seconds)


@dataclasses.dataclass
class Prepared:
    """An item with its decoded media, in the order of the document."""

    item: RawItem
    media: list[Medium]


def prepare(item: RawItem, rules: MediaRules | None) -> Prepared:
    """Decodes and resizes the media of an item. ValueError (often MediaError) gives the problem.

    `rules` is None without a vision tokenizer; then only text is possible.
    """
    if item.problem:
        raise ValueError(item.problem)
    if item.kind == "text" and not item.text:
        raise ValueError("neither text nor an image nor a clip")
    own = ({"image": item.image, "video": item.video}, *({"image": one} for one in item.pair))
    shown = [part for part in (*own, *parts_of(item)) if _shows(part)]
    if shown and rules is None:
        raise ValueError("it has an image or a clip, but no vision tokenizer was given")
    found = []
    for part in shown:
        for kind in (kind for kind in MEDIA if part.get(kind) is not None):
            medium = _read(kind, part[kind], item, rules)
            found += _cut(medium, part["context"], rules) if _is_cut(part) else [medium]
    return Prepared(item, found)


def moved(prepared: Prepared, copy: int, max_shift: int) -> Prepared:
    """A copy of the item with its media moved by up to `max_shift` pixels, edges repeated.

    The shift depends only on the item's key and the number of the copy. A clip moves as a whole,
    and all media of an item alike: an edited image keeps its place, a clip goes on where it was.
    """
    # `to_record` rejects a key that is not Unicode text later, when its item can be skipped.
    name = f"{prepared.item.key} {copy}".encode(errors="surrogatepass")
    shift = np.random.default_rng(zlib.crc32(name)).integers(0, 2 * max_shift + 1, 2)
    media_moved = [
        dataclasses.replace(medium, pixels=_moved(medium.pixels, shift, max_shift))
        for medium in prepared.media
    ]
    return Prepared(
        dataclasses.replace(prepared.item, key=f"{prepared.item.key}~{copy}"), media_moved
    )


def _moved(pixels: np.ndarray, shift: np.ndarray, max_shift: int) -> np.ndarray:
    """uint8 [..., H, W, 3] -> the same shape; a shift of `max_shift` is none."""
    height, width = pixels.shape[-3:-1]
    top, left = shift
    margin = [(0, 0)] * (pixels.ndim - 3) + [(max_shift, max_shift)] * 2 + [(0, 0)]
    wide = np.pad(pixels, margin, mode="edge")
    return wide[..., top : top + height, left : left + width, :]


def _sampled(frames: np.ndarray, filmed_at: float, rules: MediaRules) -> tuple[np.ndarray, float]:
    """Decoded frames at the rate of the rules, and that rate, as `media.read_video` does.

    A clip that does not state its rate (0) is assumed to have the rate of the rules.
    """
    fps = rules.fps or filmed_at
    if filmed_at and rules.fps:
        # The frame shown at each multiple of 1 / fps; the clip ends when its last frame ends.
        count = math.ceil((len(frames) / filmed_at - TIME_TOLERANCE) * fps)
        shown = (np.arange(count) / fps + TIME_TOLERANCE) * filmed_at
        frames = frames[np.minimum(shown.astype(int), len(frames) - 1)]
    return frames[: rules.max_frames], fps


def _read(kind: str, source: Any, item: RawItem, rules: MediaRules) -> Medium:
    name = item.where if isinstance(source, bytes) else None
    fit = functools.partial(media.smart_resize, limits=rules.limits)
    if kind == "image":
        if isinstance(source, np.ndarray):
            return Medium(media.resize(source, *fit(*source.shape[:2])))
        return Medium(media.read_image(source, name, fit))
    if isinstance(source, np.ndarray):
        pixels, fps = _sampled(source, item.fps, rules)
    else:
        pixels, fps, _ = media.read_video(source, rules.fps, rules.max_frames, name, fit)
    frames = len(pixels) // rules.temporal_factor * rules.temporal_factor
    if not frames:
        raise MediaError(
            f"a clip of {len(pixels)} frames is shorter than the vision tokenizer's temporal "
            f"factor {rules.temporal_factor}"
        )
    if isinstance(source, np.ndarray):
        pixels = media.resize(pixels, *fit(*pixels.shape[1:3]))
    return Medium(pixels[:frames], fps, frames / fps if fps else 0.0)


def _is_cut(part: dict) -> bool:
    return part.get("video") is not None and part.get("context") is not None


def _cut(clip: Medium, seconds: float, rules: MediaRules) -> list[Medium]:
    """The clip's first seconds, in whole latent frames, and the rest of it."""
    if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise ValueError(f'the "context" of a clip must be seconds above 0, found {seconds!r}')
    if not clip.fps:
        raise MediaError("a clip that states no frame rate cannot be cut after seconds; set fps")
    first = round(seconds * clip.fps) // rules.temporal_factor * rules.temporal_factor
    if not first:
        raise MediaError(
            f"a context of {seconds:g} s has {round(seconds * clip.fps)} frames, fewer than the "
            f"vision tokenizer's temporal factor {rules.temporal_factor}"
        )
    if first >= len(clip.pixels):
        raise MediaError(
            f"the clip has {clip.seconds:g} s, no more than the context of {seconds:g} s"
        )
    parts = (clip.pixels[:first], clip.pixels[first:])
    return [Medium(pixels, clip.fps, len(pixels) / clip.fps) for pixels in parts]


def to_record(prepared: Prepared, source: str, grammar: Grammar) -> tuple[Record, Counts]:
    """The record of an item whose media are encoded, and what it adds to the counts.

    Texts are tokenized here. ValueError for text without ids (a lone surrogate), for segments or
    turns that do not form a document, for a pair of equal images, and for a key or attributes that
    cannot be stored.
    """
    item = prepared.item
    shown = iter(medium.segment() for medium in prepared.media)
    if item.turns:
        segments = chat_document([_turn(part, shown) for part in item.turns]).segments
    elif item.segments:
        segments = tuple(made for part in item.segments for made in _segments(part, shown))
    else:
        segments = (Text(item.text), *shown)
    segments = tuple(_with_ids(segment, grammar) for segment in segments)
    record = Record(item.key, source, item.kind, segments, item.attributes)
    record.to_bytes()  # raises for unstorable values while the item can still be skipped
    lengths = [grammar.document_length(one) for one in documents_of(item.kind, segments)]
    return record, Counts.of(lengths, item.kind in MEDIA and not item.text)


def _turn(turn: dict, shown) -> Turn:
    media = _next(turn, shown) if _shows(turn) else ()
    return Turn(_said(turn, "question", shown), _said(turn, "answer", shown), media)


def _said(turn: dict, name: str, shown) -> str | tuple[str | Image | Video, ...]:
    """A question or an answer: its text, or its texts and media in order."""
    said = turn.get(name)
    if isinstance(said, str):
        return said
    if not isinstance(said, list | tuple):
        raise ValueError(f'a turn needs a "{name}", found {sorted(turn)}')
    parts = (_next(part, shown) if _shows(part) else [_text(part)] for part in said)
    return tuple(itertools.chain.from_iterable(parts))


def _segments(part: dict, shown) -> list[Segment]:
    loss = part.get("loss", True)
    if not isinstance(loss, bool):
        raise ValueError(f'the "loss" of a segment must be true or false, found {loss!r}')
    made = _next(part, shown) if _shows(part) else [Text(_text(part))]
    losses = [False, loss] if _is_cut(part) else [loss]
    return [dataclasses.replace(one, loss=on) for one, on in zip(made, losses, strict=True)]


def _next(part: dict, shown) -> list[Image | Video]:
    """The media of a part: one, or the two parts of a clip."""
    return [next(shown) for _ in range(2 if _is_cut(part) else 1)]


def _text(part: dict) -> str:
    if not isinstance(part.get("text"), str):
        raise ValueError(f'a segment needs "text", "image" or "video", found {sorted(part)}')
    return part["text"]


def _shows(part: dict) -> bool:
    return any(part.get(kind) is not None for kind in MEDIA)


def _with_ids(segment: Segment, grammar: Grammar) -> Segment:
    if isinstance(segment, Text):
        return dataclasses.replace(segment, ids=np.array(grammar.text_ids(segment.text), np.int32))
    return segment
