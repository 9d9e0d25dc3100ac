"""Intervals and paired tests, against enumeration and on simulated runs."""

import itertools

import numpy as np
import pytest

from emu3_jax.evaluate.tables import intervals
from emu3_jax.evaluate.tables.intervals import bootstrap, paired, sign_flip


@pytest.mark.parametrize("scores", [[0, 1], [0, 0, 1, 1, 1], [0.0, 0.3, 0.9, 1.0]])
def test_interval_is_that_of_all_resamples(scores):
    means = [np.mean(drawn) for drawn in itertools.product(scores, repeat=len(scores))]
    low, high = np.quantile(means, [0.025, 0.975])
    found = bootstrap(np.array(scores))
    assert found.mean == pytest.approx(np.mean(scores))
    # The distribution has steps; a bound may lie on the next one.
    step = np.diff(np.unique(np.round(means, 9))).max()
    assert abs(found.low - low) <= step and abs(found.high - high) <= step


def test_resamples_are_distributed_as_items_drawn_one_by_one():
    scores = np.repeat([0.0, 0.4, 1.0], [50, 30, 20])
    rng = np.random.default_rng(1)
    means = scores[rng.integers(100, size=(20_000, 100))].mean(axis=1)
    found = bootstrap(scores)
    expected = np.quantile(means, [0.025, 0.975])
    assert [found.low, found.high] == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("chance", [0.3, 0.8])
def test_intervals_cover_the_truth_as_often_as_they_say(chance):
    rng = np.random.default_rng(0)
    found = [bootstrap(rng.random(200) < chance) for _ in range(300)]
    covered = np.mean([one.low <= chance <= one.high for one in found])
    assert 0.91 <= covered <= 0.98


def test_items_that_score_alike_leave_no_width_and_one_item_no_interval():
    found = bootstrap(np.ones(50))
    assert (found.low, found.mean, found.high) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="2 items or more, not 1"):
        bootstrap(np.ones(1))


def enumerated(differences):
    signs = itertools.product([-1, 1], repeat=len(differences))
    sums = np.abs([np.dot(sign, differences) for sign in signs])
    return np.mean(sums >= abs(sum(differences)) - 1e-9)


@pytest.mark.parametrize(
    "differences",
    [[1, 1, 1, -1, 0], [0.3, -0.1, 0.2, 0.6, 0.3], [1] * 8, [0, 0, 0], [0.1 + 0.2, -0.3, 0.3]],
)
def test_p_is_that_of_all_signs(differences):
    assert sign_flip(np.array(differences, float)) == pytest.approx(enumerated(differences))


def test_drawn_signs_agree_with_all_signs(monkeypatch):
    differences = np.array([1.0] * 40 + [-1.0] * 22 + [0.5] * 9)
    exact = sign_flip(differences)
    monkeypatch.setattr(intervals, "MOST_CASES", 1)
    assert sign_flip(differences) == pytest.approx(exact, abs=0.01)


def test_p_is_uniform_if_the_runs_are_equally_good():
    rng = np.random.default_rng(0)
    pairs = [rng.random((2, 400)) < 0.6 for _ in range(300)]
    found = [paired(*pair).p for pair in pairs]
    assert 0.02 <= np.mean(np.array(found) < 0.05) <= 0.08


def test_a_difference_has_the_sign_of_the_second_run():
    first = np.array([0.0, 0, 0, 1, 1, 0, 0, 0])
    found = paired(first, np.ones(8))
    assert (found.mean, found.items, found.p) == (0.75, 8, pytest.approx(2 / 2**6))
    assert found.low > 0


def test_many_items_and_many_different_scores_take_no_more_memory(monkeypatch):
    monkeypatch.setattr(intervals, "BLOCK", 1000)
    scores = np.random.default_rng(0).random(60)
    assert bootstrap(scores).low < scores.mean() < bootstrap(scores).high
