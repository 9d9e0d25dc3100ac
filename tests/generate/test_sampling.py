"""Filters against the golden figures, draws against exact probabilities."""

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu3_jax.generate.decoding import constraints, guidance, sampling
from emu3_jax.generate.decoding.sampling import Sampling

GOLDEN = np.load(conftest.GOLDEN / "guidance.npz")


def chi_square(counts, probabilities):
    """How many standard deviations the chi-square statistic lies above its mean."""
    expected = probabilities * counts.sum()
    used = expected > 0
    assert counts[~used].sum() == 0, "a token of probability zero was drawn"
    freedom = used.sum() - 1
    statistic = ((counts[used] - expected[used]) ** 2 / expected[used]).sum()
    return (statistic - freedom) / np.sqrt(2 * freedom)


def test_top_k_and_top_p_equal_the_golden_sets():
    after_k = sampling.keep_top_k(jnp.asarray(GOLDEN["guided"]), int(GOLDEN["top_k"]))
    np.testing.assert_array_equal(after_k, GOLDEN["after_top_k"])
    after_p = sampling.keep_top_p(after_k, float(GOLDEN["top_p"]))
    np.testing.assert_array_equal(after_p, GOLDEN["after_top_p"])


def test_top_k_keeps_ties_and_top_p_cuts_them():
    scores = jnp.log(jnp.array([[0.1, 0.2, 0.2, 0.2, 0.3]]))
    assert np.isfinite(sampling.keep_top_k(scores, 2)).tolist() == [[False, True, True, True, True]]
    assert np.isfinite(sampling.keep_top_k(scores, 99)).all()
    kept = np.isfinite(sampling.keep_top_p(scores, 0.65))
    assert kept.sum() == 3 and kept[0, 4]
    assert np.isfinite(sampling.keep_top_p(scores, 1e-9)).tolist() == [[False] * 4 + [True]]
    assert np.isfinite(sampling.keep_top_p(scores, 1.0)).all()


@pytest.mark.parametrize("k", [1, 2, 7, 50, 299, 300])
def test_the_kth_best_is_that_of_a_sort(k):
    rng = np.random.default_rng(k)
    scores = (rng.normal(size=(7, 300)) * 10.0 ** rng.integers(-40, 38)).astype(np.float32)
    scores[1] = np.round(scores[1])  # many ties
    scores[2, rng.integers(0, 300, 200)] = -np.inf
    scores[3] = -np.inf
    scores[4, :3] = np.inf
    scores[5] = rng.choice(np.array([0.0, -0.0, 1e-45, -1e-45], np.float32), 300)  # denormal
    found = sampling.kth_best(jnp.asarray(scores), k)
    np.testing.assert_array_equal(found[:, 0], np.sort(scores, axis=-1)[:, -k])


def test_greedy_takes_the_best_and_needs_no_temperature():
    scores = jnp.array([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    keys = jax.random.split(jax.random.key(0), 2)
    out = sampling.draw(keys, scores, 0.0, 1.0, greedy=True, top_k=0, use_top_p=False)
    assert out.tolist() == [1, 0]


def test_draws_depend_on_seed_request_and_offset_only():
    scores = jnp.zeros((4, 1000))
    options = {"greedy": False, "top_k": 0, "use_top_p": False}

    def draw(keys):
        return np.asarray(sampling.draw(keys, scores[: len(keys)], 1.0, 1.0, **options))

    key = jax.random.key(7)
    batch = draw(sampling.row_keys(key, jnp.array([4, 9, 2, 5]), 3))
    alone = draw(sampling.row_keys(key, jnp.array([9]), 3))
    assert batch[1] == alone[0]
    assert len(set(batch.tolist())) == 4
    assert (draw(sampling.row_keys(key, jnp.array([4, 9, 2, 5]), 4)) != batch).any()
    assert (draw(sampling.row_keys(jax.random.key(8), jnp.array([4, 9, 2, 5]), 3)) != batch).any()


@pytest.mark.parametrize("top_k, top_p, temperature", [(0, 1.0, 1.0), (12, 1.0, 0.7), (20, 0.8, 1)])
def test_frequencies_match_the_exact_probabilities(top_k, top_p, temperature):
    rng = np.random.default_rng(3)
    cond, uncond = rng.normal(size=(2, 40)).astype(np.float32)

    def log_p(x):
        return x - np.log(np.exp(x).sum())

    # The same order by hand: guidance, constraint, temperature, top-k, top-p.
    scores = (log_p(uncond) + 2.0 * (log_p(cond) - log_p(uncond)))[10:40] / temperature
    p = np.exp(scores - scores.max())
    if top_k:
        p[p < np.sort(p)[-top_k]] = 0
    p /= p.sum()
    if top_p < 1:
        best_first = np.argsort(-p)
        needed = np.searchsorted(np.cumsum(p[best_first]), top_p) + 1
        p[best_first[needed:]] = 0
        p /= p.sum()

    n = 20_000
    guided = guidance.guide(jnp.asarray(cond), jnp.asarray(uncond), 2.0)[10:40]
    keys = sampling.row_keys(jax.random.key(11), jnp.arange(n), 0)
    draws = sampling.draw(
        keys,
        jnp.broadcast_to(guided, (n, 30)),
        temperature,
        top_p,
        greedy=False,
        top_k=top_k,
        use_top_p=top_p < 1,
    )
    counts = np.bincount(draws, minlength=30)
    assert abs(chi_square(counts, p)) < 4
    wrong = np.roll(p, 1)
    assert (wrong[counts > 0] == 0).any() or chi_square(counts, wrong) > 10


@pytest.mark.parametrize(
    "field, value",
    [
        ("temperature", -1),
        ("top_k", -2),
        ("top_p", 0),
        ("top_p", 1.5),
        ("guidance", -1),
        ("seed", -1),
    ],
)
def test_settings_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        Sampling(**{field: value})


def test_mask_pads_what_is_past_a_row():
    mask = constraints.mask(
        [constraints.free_text(2), np.array([constraints.VISUAL, 5])], 3, 4, pad=9
    )
    assert mask.tolist() == [[-2, -2, 9, 9], [-1, 5, 9, 9], [9, 9, 9, 9]]
