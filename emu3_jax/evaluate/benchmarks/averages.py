"""Means of scores."""

from collections.abc import Sequence


def mean(scores: Sequence[float]) -> float:
    """The mean; NaN of nothing."""
    return sum(scores) / len(scores) if scores else float("nan")
