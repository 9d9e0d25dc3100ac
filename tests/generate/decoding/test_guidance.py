"""Guidance against the figures of the official processors."""

import conftest
import jax.numpy as jnp
import numpy as np
import pytest

from emu3_jax.generate import presets
from emu3_jax.generate.decoding import guidance, sampling

GOLDEN = np.load(conftest.GOLDEN / "guidance.npz")


def test_guide_equals_the_golden_scores_but_for_a_constant():
    guided = guidance.guide(GOLDEN["cond"], GOLDEN["uncond"], float(GOLDEN["scale"]))
    difference = np.asarray(guided) - GOLDEN["guided"]
    np.testing.assert_allclose(difference, difference[..., :1] + 0 * difference, atol=4e-4, rtol=0)


def test_scale_one_and_zero_are_the_branches():
    cond, uncond = GOLDEN["cond"], GOLDEN["uncond"]
    np.testing.assert_allclose(guidance.guide(cond, uncond, 1.0), cond, atol=1e-5)
    np.testing.assert_allclose(guidance.guide(cond, uncond, 0.0), uncond, atol=1e-5)


@pytest.mark.parametrize("tokens", [(), (4,)])
def test_rows_find_their_partner_and_unguided_rows_stay(tokens):
    cond = jnp.asarray(np.random.default_rng(0).normal(size=(3, *tokens, 7)), jnp.float32)
    uncond = -cond + 1
    rows = jnp.stack([cond, uncond], axis=1).reshape(6, *tokens, 7)
    mixed = guidance.guide_pairs(rows, jnp.array([True, False, True]), jnp.float32(2.5))
    expected = guidance.guide(cond, uncond, 2.5)
    np.testing.assert_allclose(mixed[0::2], expected[0::2], rtol=1e-6)
    np.testing.assert_array_equal(mixed[1], cond[1])


def test_official_settings():
    assert presets.DEMO == sampling.Sampling(temperature=1, top_k=2048, top_p=1, guidance=3)
    assert presets.PAPER_GENEVAL.guidance == 5.5
    assert presets.UNDERSTANDING.greedy
    assert presets.POSITIVE_SUFFIX.startswith(" masterpiece")
