"""Where documents are cut and dropped: the one rule of training, likelihood and generation.

A row has a fixed number of tokens to predict: `data.sequence_length` in training, the `max_context`
of a bundle made from it. A document that is longer, if it is

  text on which all is trained       goes on in another row, where positions begin again at 0
  a chat, or text with a question    ends after the last answer that fits, so that no answer
                                     loses its question, and is dropped if not even the first fits
  anything with an image or a clip   likewise, so that none is cut

A document of n ids has n - 1 pairs (input, target): its last token is predicted and never read.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from emu3_jax import sequence
from emu3_jax.sequence import TokenClass


class Tokens(NamedTuple):
    """One document as tokens: arrays [n] as in `emu3_jax.sequence.Sequence`, the index of its
    mixture entry, and the numbers of pairs after which it may end (`ends_of`)."""

    ids: np.ndarray
    weights: np.ndarray
    classes: np.ndarray
    source: int
    ends: tuple[int, ...] | None


# (document, start, stop) of consecutive pairs.
Piece = tuple[Tokens, int, int]


def ends_of(built: sequence.Sequence) -> tuple[int, ...] | None:
    """The numbers of pairs after which a document may end, rising; None: after any.

    Text on which all is trained may end anywhere, other documents after an EOS.
    """
    if np.all(built.classes[1:] == TokenClass.TEXT) and np.all(built.weights[1:] > 0):
        return None
    return tuple((1 + np.flatnonzero(built.ids[1:] == built.ids[-1])).tolist())


def pieces(tokens: Tokens, row: int) -> list[Piece]:
    """The pieces of a document for rows of `row` pairs; [] if it is dropped."""
    pairs = len(tokens.ids) - 1
    if tokens.ends is None:
        return [(tokens, start, min(start + row, pairs)) for start in range(0, pairs, row)]
    fitting = [end for end in tokens.ends if end <= row]
    return [(tokens, 0, fitting[-1])] if fitting else []


def is_cut(found: Sequence[Piece]) -> bool:
    """Whether these `pieces` are parts of their document only; False if it was dropped."""
    return bool(found) and found[0][2] < len(found[0][0].ids) - 1
