"""Scores of candidates to pairs: scorers have different scales and are combined by rank."""

import numpy as np

from emu3_jax.data.tokens.preference_pairs import ordered_pairs
from emu3_jax.preferences.preferences_config import BEST_WORST


def mean_ranks(scores_SN: np.ndarray) -> np.ndarray:
    """The mean over S scorers of the rank of N candidates, float64 [N]; higher is better.

    A scorer's worst candidate has rank 1; equal scores share the mean of their ranks. The paper's
    normalisation of its three scores is not known.
    """
    below = (scores_SN[:, :, None] > scores_SN[:, None, :]).sum(-1)
    equal = (scores_SN[:, :, None] == scores_SN[:, None, :]).sum(-1)
    # Sums of halves: exact, so that candidates of equal ranks are found to be equal.
    return (below + (equal + 1) / 2).sum(0) / len(scores_SN)


def pairs_of(scores_SN: np.ndarray, which: str) -> list[tuple[int, int]]:
    """(better, worse) candidates, by number; none if all have one rank.

    Args:
      scores_SN: finite scores of S scorers for N candidates of one prompt.
      which: "best_worst", where of several that are equally good or bad the first is taken, or
        "all" pairs of candidates that differ in rank.
    """
    ranks_N = mean_ranks(scores_SN)
    if which != BEST_WORST:
        return ordered_pairs(ranks_N.tolist())
    best, worst = int(ranks_N.argmax()), int(ranks_N.argmin())
    return [(best, worst)] if ranks_N[best] > ranks_N[worst] else []
