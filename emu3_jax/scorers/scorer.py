"""The interface of scorers, and scoring that reports what cannot be scored.

A scorer gives one number per pair of a caption and an image; higher is better. Numbers of different
scorers have different scales and are compared by rank only.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import jax
import numpy as np

from emu3_jax.config import ConfigError
from emu3_jax.foreign import failures_as

# What concerns the device or the settings, not an image.
NOT_THE_PAIRS = (jax.errors.JaxRuntimeError, ConfigError)


@runtime_checkable
class Scorer(Protocol):
    """The interface of a scorer.

    A scorer may also have `check()`, which reads its weights and raises a ValueError if they are
    wrong; `registry.make` calls it, so that this is known before long work starts. One that judges
    by the model that drew has `of_model(bundle)`, which returns the scorer of that model's codes:
    its images are int32 [h, w] (`generate.caption_likelihood`).

    Attributes:
      name: what its scores are called where they are stored.
    """

    name: str

    def score(self, prompts: Sequence[str], images: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [N] of N captions and N images, uint8 [H, W, 3] of any sizes.

        In a program of several processes each one gives the same pairs and receives all scores.
        An error concerns at least one of the pairs; `score_all` finds out which.
        """


@dataclasses.dataclass(frozen=True)
class Scores:
    """What `score_all` found.

    Attributes:
      values_N: float32 [N]; NaN where there is no score.
      reasons: index of a pair without a score → why, one sentence.
    """

    values_N: np.ndarray
    reasons: Mapping[int, str]


class _RefusedError(ValueError):
    """The scorer failed on these pairs."""


def score_all(scorer: Scorer, prompts: Sequence[str], images: Sequence[np.ndarray]) -> Scores:
    """Scores every pair that can be scored.

    Pairs that a scorer raises for are found by halves, so that one of them costs a few calls. A
    score that is not a finite number is a failure of its pair too. Failures of the device and of
    the scorer's settings are not the pairs' and pass.

    Raises:
      ValueError: not as many captions as images, or a scorer whose answer is not one number per
        pair; names the scorer.
    """
    if len(prompts) != len(images):
        raise ValueError(f"{scorer.name}: {len(prompts)} captions and {len(images)} images")
    values_N = np.full(len(images), np.nan, np.float32)
    reasons: dict[int, str] = {}
    waiting = [(0, len(images))] if images else []
    while waiting:
        start, stop = waiting.pop()
        try:
            values_N[start:stop] = _scored(scorer, prompts[start:stop], images[start:stop])
        except _RefusedError as refused:
            if isinstance(refused.__cause__, NOT_THE_PAIRS):
                raise refused.__cause__ from None
            if stop - start == 1:
                reasons[start] = f"{scorer.name}: {refused}"
            else:
                middle = (start + stop) // 2
                waiting += [(middle, stop), (start, middle)]
    for index in np.flatnonzero(~np.isfinite(values_N)).tolist():
        reasons.setdefault(index, f"{scorer.name}: the score is {values_N[index]}")
        values_N[index] = np.nan
    return Scores(values_N, dict(sorted(reasons.items())))


def _scored(scorer: Scorer, prompts: Sequence[str], images: Sequence[np.ndarray]) -> np.ndarray:
    with failures_as(_RefusedError):
        found = scorer.score(prompts, images)
    values = np.asarray(found)
    if values.shape != (len(images),) or values.dtype.kind not in "fiu":
        raise ValueError(
            f"{scorer.name} must give {len(images)} numbers for {len(images)} images, found "
            f"{values.dtype} {list(values.shape)}"
        )
    return values.astype(np.float32)
