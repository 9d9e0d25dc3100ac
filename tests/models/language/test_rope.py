"""Rotary positions: the rotate-half form, relative by construction, exact at far positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu3_jax.models.language import rope
from emu3_jax.models.language.kv_cache import KVCache
from emu3_jax.models.language.transformer import Transformer, TransformerConfig

THETA = 1e6


def _rotate_in_float64(x, positions):
    """Dimension i and i + H/2 as one complex number, turned by position * theta^(-2i/H)."""
    half = x.shape[-1] // 2
    angle = positions[..., None] * THETA ** (-np.arange(half) * 2.0 / x.shape[-1])
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)[:, :, None]
    return np.concatenate([turned.real, turned.imag], axis=-1)


def test_pairs_are_the_two_halves():
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 16))
    positions = np.array([[0, 1, 2, 3, 4], [7, 0, 100, 5, 131]])
    cos, sin = rope.rotation(jnp.asarray(positions), 16, THETA, jnp.float32)
    found = rope.rotate(jnp.asarray(x, jnp.float32), cos, sin)
    # Angles up to 131 in float32 are off by at most 131 * 2^-24 < 8e-6, times |x| < 4.
    np.testing.assert_allclose(found, _rotate_in_float64(x, positions), atol=4e-5)


def test_scores_depend_on_the_distance_alone():
    q, k = np.random.default_rng(1).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

    def score(at):
        def turn(x, p):
            return rope.rotate(x, *rope.rotation(jnp.array([[p]]), 8, THETA, jnp.float32))

        return float((turn(q, at + 3) * turn(k, at)).sum())

    np.testing.assert_allclose(score(0), score(50), atol=1e-4)
    assert abs(score(0) - float((q * k).sum())) > 1e-2


def test_bfloat16_rounds_the_cosine_and_not_the_angle():
    positions = jnp.array([[131_071]])
    cos_low, sin_low = rope.rotation(positions, 8, THETA, jnp.bfloat16)
    cos, sin = rope.rotation(positions, 8, THETA, jnp.float32)
    assert cos_low.dtype == jnp.bfloat16
    np.testing.assert_allclose(cos_low.astype(np.float32), cos, atol=2**-8)
    np.testing.assert_allclose(sin_low.astype(np.float32), sin, atol=2**-8)


def test_positions_restart_in_each_segment():
    segments = jnp.array([[1, 1, 1, 2, 2, 0], [5, 3, 3, 3, 3, 3]])
    expected = [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]]
    np.testing.assert_array_equal(rope.positions_in_segments(segments), expected)


@pytest.mark.parametrize("theta", [None, 1e4])
def test_the_model_turns_its_keys_by_the_base_of_its_config(theta):
    """The first layer's keys of one repeated token differ by their rotation alone.

    None is the default, the base of the released weights.
    """
    base = {} if theta is None else {"rope_theta": theta}
    config = TransformerConfig(64, 16, 32, 1, 2, 1, 8, vocab_multiple=64, **base)
    model, tokens = Transformer(config), jnp.full((1, 3), 7)
    variables = model.init(jax.random.key(0), tokens)
    positions, written = jnp.array([[0, 1, 50]]), jnp.zeros((1, 1), bool)
    cache = KVCache.zeros(config, rows=1, slots=3)
    keys = model.apply(variables, tokens, positions, cache, written, method="read")[1].k[0, 0, 0]
    pairs = np.asarray(keys, np.float64)[:, :4] + 1j * np.asarray(keys, np.float64)[:, 4:]
    expected = np.exp(1j * positions[0, :, None] * (theta or THETA) ** (-np.arange(4) / 4.0))
    np.testing.assert_allclose(pairs / pairs[0], expected, atol=1e-4)
