"""Guidance against the figures of the official processors."""

import conftest
import jax.numpy as jnp
import numpy as np

from emu3_jax.generate import presets
from emu3_jax.generate.decoding import guidance, sampling

GOLDEN = np.load(conftest.GOLDEN / "guidance.npz")


def test_guide_equals_the_golden_scores():
    guided = guidance.guide(GOLDEN["cond"], GOLDEN["uncond"], float(GOLDEN["scale"]))
    np.testing.assert_allclose(guided, GOLDEN["guided"], atol=2e-4, rtol=0)


def test_scale_one_and_zero_are_the_branches():
    cond, uncond = GOLDEN["cond"], GOLDEN["uncond"]

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    np.testing.assert_allclose(guidance.guide(cond, uncond, 1.0), log_softmax(cond), atol=1e-5)
    np.testing.assert_allclose(guidance.guide(cond, uncond, 0.0), log_softmax(uncond), atol=1e-5)


def test_interleaved_rows_find_their_partner_and_unguided_rows_stay():
    cond = jnp.asarray(np.random.default_rng(0).normal(size=(3, 7)), jnp.float32)
    uncond = -cond + 1
    rows = guidance.interleave(cond, uncond)
    np.testing.assert_array_equal(rows[2], cond[1])
    np.testing.assert_array_equal(rows[3], uncond[1])
    mixed = guidance.guide_interleaved(rows, jnp.array([True, False, True]), jnp.float32(2.5))
    expected = guidance.guide(cond, uncond, 2.5)
    np.testing.assert_allclose(mixed[0::2], expected[0::2], rtol=1e-6)
    np.testing.assert_array_equal(mixed[1], cond[1])


def test_official_settings():
    assert presets.DEMO == sampling.Sampling(temperature=1, top_k=2048, top_p=1, guidance=3)
    assert presets.PAPER_GENEVAL.guidance == 5.5
    assert presets.UNDERSTANDING.greedy
    assert presets.POSITIVE_SUFFIX.startswith(" masterpiece")
