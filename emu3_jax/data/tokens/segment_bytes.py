"""Segments of documents as records store them: integers little-endian in the narrowest type."""

import numpy as np

from emu3_jax.sequence import EndOfTurn, Image, Segment, Text, Video


def pack(segment: Segment) -> list:
    """The segment as msgpack stores it; ValueError for a text without ids."""
    if isinstance(segment, Text):
        if segment.ids is None:
            raise ValueError("a stored text needs its ids")
        return ["t", segment.loss, segment.text, *_integers(segment.ids)]
    if isinstance(segment, Image):
        return ["i", segment.loss, segment.codes.shape, *_integers(segment.codes)]
    if isinstance(segment, Video):
        shape = segment.codes.shape
        return ["v", segment.loss, shape, segment.fps, segment.seconds, *_integers(segment.codes)]
    return ["e", segment.loss]


def unpack(packed: list) -> Segment:
    """The inverse of `pack`; any error for what `pack` did not write."""
    tag, loss, *rest = packed
    if tag == "t":
        return Text(rest[0], loss, _array(*rest[1:]))
    if tag == "i":
        return Image(_array(*rest[1:]).reshape(rest[0]), loss)
    if tag == "v":
        return Video(_array(*rest[3:]).reshape(rest[0]), rest[1], rest[2], loss)
    if tag == "e":
        return EndOfTurn(loss)
    raise ValueError(f"unknown segment {tag!r}")


def _integers(values) -> tuple[int, bytes]:
    """(bytes per number, little-endian bytes); 2 bytes per number if all fit."""
    values = np.asarray(values, np.int64).ravel()
    width = 2 if not len(values) or values.max() < 1 << 16 else 4
    return width, values.astype(f"<u{width}").tobytes()


def _array(width: int, content: bytes) -> np.ndarray:
    return np.frombuffer(content, f"<u{width}").astype(np.int32)
