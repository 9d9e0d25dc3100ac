"""Preference pairs: one prompt and two images, of which the first is preferred to the second.

A record of this kind holds (Text, Image, Image). Its attributes have "scores", {"chosen": {name:
number}, "rejected": {…}}, where there are any, and "source", where the pair comes from.
"""

from collections.abc import Sequence

import numpy as np

from emu3_jax.sequence import Document, Image, Segment, Text

PREFERENCE = "preference"


def check_pair(segments: Sequence[Segment]) -> None:
    """ValueError unless the segments are one prompt and two images of different codes.

    The sizes of the images may differ.
    """
    found = tuple(type(segment) for segment in segments)
    if found != (Text, Image, Image):
        names = ", ".join(kind.__name__ for kind in found) or "nothing"
        raise ValueError(f"a preference pair must be a Text and two Images, found {names}")
    _, chosen, rejected = segments
    if np.array_equal(chosen.codes, rejected.codes):
        raise ValueError("the chosen image and the rejected one have the same codes")


def documents_of(kind: str, segments: Sequence[Segment]) -> tuple[Document, ...]:
    """The documents of a record: (chosen, rejected) of a pair, else the one that it is."""
    if kind == PREFERENCE:
        prompt, chosen, rejected = segments
        return Document((prompt, chosen)), Document((prompt, rejected))
    return (Document(tuple(segments)),)


def ordered_pairs(values: Sequence[float]) -> list[tuple[int, int]]:
    """All pairs (better, worse) of indices, by number; equal values make none. Higher is better."""
    indices = range(len(values))
    return [(i, j) for i in indices for j in indices if values[i] > values[j]]
