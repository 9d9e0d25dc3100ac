"""How certain a mean over items is: bootstrap intervals, and paired tests of two runs.

Scores of benchmarks take few different values (0 and 1, or tenths), so items with the same score
are counted and never drawn one by one: the distributions are the same, and the time does not grow
with the number of items.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np

LEVEL = 0.95
RESAMPLES = 10_000
# Random signs are enumerated up to this many different cases, and drawn beyond.
MOST_CASES = 100_000
# Differences of scores that are closer than this are the same difference.
DECIMALS = 12
BLOCK = 4_000_000  # counts held at a time


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with its interval.

    Attributes:
      mean: of the items.
      low, high: bounds of the interval that holds the true mean with probability LEVEL.
    """

    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Difference(Interval):
    """A mean difference of two runs on the same items, second minus first, with its interval.

    Attributes:
      items: their number.
      p: how often a difference as large, in either direction, occurs if the runs are equally good.
    """

    items: int
    p: float


def bootstrap(scores: np.ndarray, seed: int = 0) -> Interval:
    """The percentile interval of a mean, from RESAMPLES resamples of the items.

    Args:
      scores: float [N] with N >= 2; with fewer nothing is known of the spread: ValueError.
      seed: of the resamples.
    """
    scores = np.asarray(scores, np.float64)
    if len(scores) < 2:
        raise ValueError(f"an interval needs 2 items or more, not {len(scores)}")
    values, counts = np.unique(scores, return_counts=True)
    total, shares = len(scores), counts / len(scores)
    drawn = _drawn(seed, len(values), lambda rng, rows: rng.multinomial(total, shares, rows))
    means = np.concatenate([block @ values for block in drawn]) / total
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(scores.mean()), float(low), float(high))


def paired(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Difference:
    """Compares two runs item by item.

    The interval is that of `bootstrap`. The test changes the sign of each item's difference at
    random, which for scores of 0 and 1 is the exact test of McNemar.

    Args:
      first, second: float [N], scores of the same items in the same order, N >= 2.
      seed: of resamples and signs.
    """
    differences = np.round(np.asarray(second, np.float64) - np.asarray(first), DECIMALS)
    interval = bootstrap(differences, seed)
    return Difference(
        interval.mean, interval.low, interval.high, len(differences), sign_flip(differences, seed)
    )


def sign_flip(differences: np.ndarray, seed: int = 0) -> float:
    """The two-sided p-value of a sum of differences under random signs.

    Exact if there are at most MOST_CASES different sums to look at, else from RESAMPLES draws; then
    the smallest value possible is 1 / (RESAMPLES + 1).
    """
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    # Sums that are equal in exact arithmetic differ by rounding.
    observed = abs(differences.sum()) - 10.0**-DECIMALS * max(1, len(differences))
    cases = math.prod(int(count) + 1 for count in counts)
    if cases <= MOST_CASES:
        sums, chances = np.zeros(1), np.ones(1)
        for size, count in zip(sizes, counts, strict=True):
            positive = np.arange(count + 1)
            sums = np.add.outer(sums, size * (2 * positive - count)).ravel()
            chances = np.multiply.outer(chances, _binomial(int(count))).ravel()
        return min(1.0, float(chances[np.abs(sums) >= observed].sum()))
    drawn = _drawn(
        seed, len(sizes), lambda rng, rows: rng.binomial(counts, 0.5, (rows, len(counts)))
    )
    sums = np.concatenate([(2 * block - counts) @ sizes for block in drawn])
    return float((1 + (np.abs(sums) >= observed).sum()) / (1 + RESAMPLES))


def _drawn(
    seed: int, width: int, draw: Callable[[np.random.Generator, int], np.ndarray]
) -> Iterator[np.ndarray]:
    """Yields draw(rng, rows): RESAMPLES rows of `width` counts in all, a block at a time."""
    rng, rows = np.random.default_rng(seed), max(1, BLOCK // max(1, width))
    for start in range(0, RESAMPLES, rows):
        yield draw(rng, min(rows, RESAMPLES - start))


def _binomial(count: int) -> np.ndarray:
    """The chances of 0 … count heads of `count` fair coins: [count + 1]."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    return np.exp(logs[-1] - logs - logs[::-1] - count * math.log(2))
