"""Choosing a few of many so that all parts are represented."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def evenly_chosen(rows: Sequence[T], count: int) -> list[T]:
    """Returns `count` of the rows, or all if there are fewer: the middle of each of equal parts."""
    count = min(count, len(rows))
    return [rows[(2 * i + 1) * len(rows) // (2 * count)] for i in range(count)]
