"""Fréchet distance: closed forms, scipy's root, streaming, and the file that keeps statistics."""

import conftest
import numpy as np
import pytest

from emu3_jax.evaluate.vision import frechet
from emu3_jax.evaluate.vision.frechet import Statistics

RNG = np.random.default_rng(0)


def test_commuting_covariances_have_a_closed_form():
    # |m - n|^2 + sum (sqrt(s) - sqrt(t))^2. One variance is zero, as of dead features.
    turn = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    s, t = RNG.uniform(0.1, 4, 6), RNG.uniform(0.1, 4, 6)
    s[0] = 0.0
    m, n = RNG.normal(size=6), RNG.normal(size=6)
    a, b = (Statistics(101, mean, turn * v @ turn.T * 100) for mean, v in ((m, s), (n, t)))
    expected = np.sum((m - n) ** 2) + np.sum((np.sqrt(s) - np.sqrt(t)) ** 2)
    # The root of a zero that rounds to 1e-16 is 1e-8, times the other side's root.
    assert frechet.distance(a, b) == pytest.approx(expected, abs=1e-7)


def test_distance_is_that_of_scipys_root_of_the_product():
    with np.load(conftest.GOLDEN / "frechet.npz") as golden:
        a, b = Statistics.of(golden["a"]), Statistics.of(golden["b"])
        expected = float(golden["distance"])
    assert frechet.distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert frechet.distance(b, a) == pytest.approx(expected, rel=1e-10)


def test_fewer_samples_than_dimensions_still_give_a_number():
    a = Statistics.of(RNG.normal(size=(5, 20)))
    assert not a.enough
    assert Statistics.of(RNG.normal(size=(40, 20))).enough
    # Rank 4 of 20: the roots of what rounds to 1e-16 add up, 16 of 1e-8.
    assert frechet.distance(a, a) == pytest.approx(0.0, abs=1e-6)
    b = Statistics(a.count, a.mean_D + 3.0, a.scatter_DD)
    assert frechet.distance(a, b) == pytest.approx(20 * 9.0, abs=1e-6)


def test_streams_and_merges_are_the_whole():
    # Far from zero, where sums of squares would cancel.
    features = RNG.normal(size=(50, 4)) * [1, 2, 3, 4] + 1e6
    whole = Statistics.streamed([features[:1], features[1:20], features[20:]])
    assert whole.count == 50
    assert whole.mean_D == pytest.approx(features.mean(0))
    assert whole.covariance == pytest.approx(np.cov(features, rowvar=False), rel=1e-8, abs=1e-8)
    with pytest.raises(ValueError, match="of 4 and of 3 dimensions"):
        whole.merged(Statistics.of(np.ones((2, 3))))
    with pytest.raises(ValueError, match="no features"):
        Statistics.streamed([])


def test_statistics_are_kept_with_what_they_came_from(tmp_path):
    kept = Statistics.of(RNG.normal(size=(9, 3)))
    path = tmp_path / "kept.npz"
    assert frechet.load(path, "a") is None
    frechet.save(path, kept, "a")
    assert frechet.load(path, "b") is None
    found = frechet.load(path, "a")
    assert found.count == 9
    assert np.array_equal(found.mean_D, kept.mean_D)
    assert np.array_equal(found.scatter_DD, kept.scatter_DD)
    for broken in (b"words", path.read_bytes()[:200]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="kept.npz does not hold statistics"):
            frechet.load(path, "a")


def test_features_that_cannot_be_compared_are_refused():
    good = Statistics.of(np.eye(3))
    with pytest.raises(ValueError, match="3 and of 2 dimensions"):
        frechet.distance(good, Statistics.of(np.eye(2)))
    with pytest.raises(ValueError, match="not finite"):
        frechet.distance(good, Statistics.of(np.full((2, 3), np.nan)))
    with pytest.raises(ValueError, match=r"\[N, D\] with N at least 1"):
        Statistics.of(np.zeros((0, 3)))
