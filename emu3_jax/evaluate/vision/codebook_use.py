"""Use of codes, from counts alone: shares, perplexity, overlap."""

from collections.abc import Sequence

import numpy as np


def code_counts(codes: Sequence[np.ndarray], codebook_size: int) -> np.ndarray:
    """Returns int64 [codebook_size]: how often each code occurs in int arrays of any shapes."""
    counts_N = np.zeros(codebook_size, np.int64)
    for code in codes:
        counts_N += np.bincount(np.ravel(code), minlength=codebook_size)
    return counts_N


def used_percent(counts_N: np.ndarray) -> float:
    """Returns the percentage of codes that occur at all."""
    return 100.0 * float(np.mean(counts_N > 0))


def perplexity(counts_N: np.ndarray) -> float:
    """Returns exp(entropy): the number of evenly used codes with the same entropy."""
    share = counts_N[counts_N > 0] / counts_N.sum()
    return float(np.exp(-np.sum(share * np.log(share))))


def codes_covering(counts_N: np.ndarray, percent: float) -> int:
    """Returns the smallest number of codes that make up at least `percent` of the counts."""
    running = np.cumsum(np.sort(counts_N)[::-1])
    return int(np.searchsorted(running * 100.0, running[-1] * percent) + 1)


def overlap_percent(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Returns the percentage of codes in both counts among those in either."""
    either = np.sum((a_N > 0) | (b_N > 0))
    return 100.0 * float(np.sum((a_N > 0) & (b_N > 0)) / either)


def codebook_metrics(codes: Sequence[np.ndarray], codebook_size: int, where: str) -> dict:
    """Returns `codebook_used_<where>` in percent and `codebook_perplexity_<where>`."""
    counts_N = code_counts(codes, codebook_size)
    return {
        f"codebook_used_{where}": used_percent(counts_N),
        f"codebook_perplexity_{where}": perplexity(counts_N),
    }
