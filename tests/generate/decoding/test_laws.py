"""Filters against the golden figures, draws against exact probabilities."""

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu3_jax.generate.decoding import guidance, laws
from emu3_jax.generate.decoding.laws import Filters
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
    after_k = laws.keep_top_k(jnp.asarray(GOLDEN["guided"]), int(GOLDEN["top_k"]))
    np.testing.assert_array_equal(after_k, GOLDEN["after_top_k"])
    after_p = laws.keep_top_p(after_k, float(GOLDEN["top_p"]))
    np.testing.assert_array_equal(after_p, GOLDEN["after_top_p"])


def test_top_k_keeps_ties_and_top_p_cuts_them():
    scores = jnp.log(jnp.array([[0.1, 0.2, 0.2, 0.2, 0.3]]))
    assert np.isfinite(laws.keep_top_k(scores, 2)).tolist() == [[False, True, True, True, True]]
    assert np.isfinite(laws.keep_top_k(scores, 99)).all()
    kept = np.isfinite(laws.keep_top_p(scores, 0.65))
    assert kept.sum() == 3 and kept[0, 4]
    assert np.isfinite(laws.keep_top_p(scores, 1e-9)).tolist() == [[False] * 4 + [True]]
    assert np.isfinite(laws.keep_top_p(scores, 1.0)).all()


@pytest.mark.parametrize("k", [1, 2, 7, 50, 299, 300])
def test_the_kth_best_is_that_of_a_sort(k):
    rng = np.random.default_rng(k)
    scores = (rng.normal(size=(7, 300)) * 10.0 ** rng.integers(-40, 38)).astype(np.float32)
    scores[1] = np.round(scores[1])  # many ties
    scores[2, rng.integers(0, 300, 200)] = -np.inf
    scores[3] = -np.inf
    scores[4, :3] = np.inf
    scores[5] = rng.choice(np.array([0.0, -0.0, 1e-45, -1e-45], np.float32), 300)  # denormal
    found = laws.kth_best(jnp.asarray(scores), k)
    np.testing.assert_array_equal(found[:, 0], np.sort(scores, axis=-1)[:, -k])


@pytest.mark.parametrize("candidates", [511, 512, 513, 32768, 32769, 70001])
def test_the_kth_best_of_any_number_of_candidates(candidates):
    scores = np.random.default_rng(0).normal(size=(2, candidates)).astype(np.float32)
    scores[1] = 1  # all are counted at once
    for k in (1, 300, candidates):
        found = laws.kth_best(jnp.asarray(scores), k)
        np.testing.assert_array_equal(found[:, 0], np.sort(scores, axis=-1)[:, -k])


def test_the_greedy_law_is_the_best_token_and_needs_no_temperature():
    scores = jnp.array([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    law = laws.law(scores, 0.0, 1.0, Filters(True, 0, False))
    assert law.tolist() == [[0, 1, 0], [1, 0, 0]]


def test_uniforms_depend_on_seed_request_and_offset_only():
    def of(seed, numbers, offset):
        numbers = jnp.array(numbers)
        return np.asarray(laws.uniforms(seed, 2, numbers, jnp.full_like(numbers, offset)))

    batch = of(7, [4, 9, 2, 5], 3)
    assert batch.shape == (4, 2) and len(np.unique(batch)) == 8
    np.testing.assert_array_equal(batch[1:2], of(7, [9], 3))
    assert (of(7, [4, 9, 2, 5], 4) != batch).all()
    assert (of(8, [4, 9, 2, 5], 3) != batch).all()
    many = np.asarray(laws.uniforms(1, 1, jnp.arange(20_000), jnp.zeros(20_000, jnp.int32)))
    assert 0 <= many.min() and many.max() < 1
    counts = np.bincount((many[:, 0] * 50).astype(int), minlength=50)
    assert abs(chi_square(counts, np.full(50, 0.02))) < 4


@pytest.mark.parametrize("candidates", [3, 256, 257, 5000])
def test_a_draw_follows_its_weights_and_never_takes_a_weight_of_zero(candidates):
    rng = np.random.default_rng(candidates)
    weights = rng.exponential(size=candidates)
    weights[rng.random(candidates) < 0.5] = 0
    weights[1] = 1
    weights = (weights * 10.0 ** rng.integers(-30, 30)).astype(np.float32)
    n = 100_000
    draws = np.asarray(
        jax.jit(jax.vmap(laws.draw, (None, 0)))(
            jnp.asarray(weights), rng.random((n, 2), np.float32)
        )
    )
    p = weights.astype(np.float64) / weights.astype(np.float64).sum()
    assert (weights[draws] > 0).all()
    # Candidates of few draws are counted together.
    common = p * n > 20
    counts = np.bincount(draws, minlength=candidates)
    counts = np.append(counts[common], counts[~common].sum())
    assert abs(chi_square(counts, np.append(p[common], p[~common].sum()))) < 4


def test_the_ends_of_the_uniform_numbers_are_possible_candidates():
    weights = jnp.zeros((2, 1000)).at[0, 400].set(1e-30).at[1, 999].set(3.0).at[1, 500].set(1e-20)
    ends = jnp.array([[0.0, 0.0], [0.0, 0.0]]), jnp.full((2, 2), np.nextafter(np.float32(1), 0))
    assert laws.draw(weights, ends[0]).tolist() == [400, 500]
    assert laws.draw(weights, ends[1]).tolist() == [400, 999]


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
    law = laws.law(guided, temperature, top_p, Filters(False, top_k, top_p < 1))
    np.testing.assert_allclose(law, p, atol=1e-6)
    uniforms = laws.uniforms(11, 2, jnp.arange(n), jnp.zeros(n, jnp.int32))
    draws = laws.draw(jnp.broadcast_to(law, (n, 30)), uniforms)
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
        ("decoder", "fast"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        Sampling(**{field: value})
