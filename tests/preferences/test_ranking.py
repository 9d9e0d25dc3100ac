"""Scores of several scorers to pairs, by rank."""

import numpy as np
import pytest
from scipy.stats import rankdata

from emu3_jax.preferences.ranking import mean_ranks, pairs_of


def test_ranks_are_those_of_scipy_and_know_no_scale():
    scores = np.random.default_rng(0).integers(0, 6, (3, 10)).astype(np.float32)
    expected = np.mean([rankdata(row) for row in scores], axis=0)
    np.testing.assert_allclose(mean_ranks(scores), expected, rtol=1e-15)
    scaled = scores * np.array([[1], [100], [1e-3]], np.float32) + 5
    np.testing.assert_array_equal(mean_ranks(scaled), mean_ranks(scores))


@pytest.mark.parametrize(
    "scores, best_worst, all_pairs",
    [
        ([[3, 1, 2]], [(0, 1)], [(0, 1), (0, 2), (2, 1)]),
        # The scorers contradict each other about 0 and 1; 2 is worst to both.
        ([[3, 2, 1], [20, 30, 10]], [(0, 2)], [(0, 2), (1, 2)]),
        ([[1, 1, 1]], [], []),
        ([[1, 2], [2, 1]], [], []),
        ([[5, 5, 1, 1]], [(0, 2)], [(0, 2), (0, 3), (1, 2), (1, 3)]),
    ],
)
def test_pairs(scores, best_worst, all_pairs):
    scores = np.array(scores, np.float32)
    assert pairs_of(scores, "best_worst") == best_worst
    assert pairs_of(scores, "all") == all_pairs
