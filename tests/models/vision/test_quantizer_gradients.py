"""What gradients pass through the quantizers, against matrices and formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantizer_formulas import (
    CONFIGS,
    EPS,
    LEVELS,
    D,
    N,
    _entropy_loss,
    _fsq_span,
    _latents,
    _sign_table,
    _softmax,
    _unit,
    _variables,
)

from emu3_jax.models.vision import quantizers
from emu3_jax.models.vision.quantizers import gradients, search


def test_straight_through_has_the_values_of_one_and_the_gradient_of_the_other():
    latents, entries = _latents(), 100 * _latents()[::-1]
    values, (to_latents, to_entries) = _passed(gradients.straight_through, latents, entries, 3.0)
    np.testing.assert_array_equal(values, entries)
    np.testing.assert_array_equal(to_latents, np.full_like(latents, 3.0))
    np.testing.assert_array_equal(to_entries, np.zeros_like(entries))


def _passed(function, latents, entries, upstream):
    """Values of a function of both, and the gradients of sum(values * upstream)."""

    def total(a, b):
        values = function(a, b)
        return jnp.sum(values * upstream), values

    (_, values), to = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(latents, entries)
    return values, to


def test_the_rotation_trick_is_that_of_matrices():
    rng = np.random.default_rng(0)
    latents, entries, upstream = rng.normal(size=(3, 7, D))
    expected = []
    for x, q, g in zip(latents, entries, upstream, strict=True):
        # The rotation in the plane of both by the angle from x to q, without the trick's formula.
        u, w = _unit(x), _unit(q)
        v = _unit(w - (w @ u) * u)
        cos, sin = w @ u, w @ v
        plane = np.stack([u, v])
        turn = np.array([[cos, -sin], [sin, cos]])
        rotation = np.eye(D) - plane.T @ plane + plane.T @ turn @ plane
        factor = np.linalg.norm(q) / np.linalg.norm(x)
        np.testing.assert_allclose(factor * rotation @ x, q)
        expected.append(factor * rotation.T @ g)
    latents, entries = latents.astype(np.float32), entries.astype(np.float32)
    values, (to_latents, to_entries) = _passed(gradients.rotated, latents, entries, upstream)
    np.testing.assert_array_equal(values, entries)
    # Some ten roundings of numbers of up to 3 times a factor of up to 10.
    np.testing.assert_allclose(to_latents, expected, atol=10 * 30 * EPS)
    np.testing.assert_array_equal(to_entries, np.zeros_like(entries))


def test_rotations_without_a_direction_are_finite():
    latents = jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1e-30, 0.0]])
    entries = jnp.array([[1.0, 0.0], [-2.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    values, (to_latents, _) = _passed(gradients.rotated, latents, entries, 1.0)
    np.testing.assert_array_equal(values, entries)
    assert np.isfinite(to_latents).all() and np.abs(to_latents).max() < 10


@pytest.mark.parametrize("name", ["nearest", "rotation", "cosine"])
def test_losses_and_vectors_each_move_their_own_side(name):
    config = CONFIGS[name]
    quantizer, variables, x = quantizers.make_quantizer(config), _variables(config), _latents()

    def parts(variables, x):
        out = quantizer.apply(variables, x)
        return {"vectors": jnp.sum(out.vectors[..., 0]), **out.losses}

    slopes = jax.jit(jax.jacrev(parts, (0, 1)))(variables, x)
    for part, moves_table in (("vectors", False), ("commitment", False), ("codebook", True)):
        to_variables, to_latents = slopes[part]
        table = np.abs(to_variables["params"]["embedding"]).max()
        latents = np.abs(to_latents).max()
        assert (table > 0) == moves_table and (latents > 0) == (not moves_table), part


def test_cosine_gradients_pass_the_unit_sphere():
    quantizer, variables = (
        quantizers.make_quantizer(CONFIGS["cosine"]),
        _variables(CONFIGS["cosine"]),
    )
    x = _latents((7,))
    x[0] = 0  # without a direction
    g = np.random.default_rng(2).normal(size=x.shape)
    found = jax.jit(jax.grad(lambda x: jnp.sum(quantizer.apply(variables, x).vectors * g)))(x)
    assert np.isfinite(found).all()
    x, g, found = x[1:], g[1:], found[1:]
    u, length = _unit(x.astype(np.float64)), np.linalg.norm(x, axis=-1, keepdims=True)
    expected = (g - (g * u).sum(-1, keepdims=True) * u) / length
    np.testing.assert_allclose(found, expected, atol=10 * EPS * 3 / length.min())


def _through_choice(x, table, g):
    """Gradients of sum(vectors * g) for IBQ, of the latents and of the table, in float64."""
    p = _softmax(x @ table.T)
    gain = g @ table.T
    to_scores = p * (gain - (p * gain).sum(-1, keepdims=True))
    to_table = to_scores.T @ x
    np.add.at(to_table, (x @ table.T).argmax(-1), g)
    return to_scores @ table, to_table


@pytest.mark.parametrize("rows", [7, 64], ids=["in blocks", "at once"])
def test_ibq_gradients_reach_every_entry(monkeypatch, rows):
    monkeypatch.setattr(search, "MAX_DISTANCES", N * rows)
    quantizer, variables = quantizers.make_quantizer(CONFIGS["ibq"]), _variables(CONFIGS["ibq"])
    x = _latents((50,))
    table = variables["params"]["embedding"].astype(np.float64)
    g = np.random.default_rng(2).normal(size=x.shape)

    def parts(variables, x):
        out = quantizer.apply(variables, x)
        return jnp.sum(out.vectors * g), out.losses["commitment"]

    slopes = jax.jit(jax.jacrev(parts, (0, 1)))(variables, x)
    to_table = [to_variables["params"]["embedding"] for to_variables, _ in slopes]
    to_x = [to_latents for _, to_latents in slopes]
    # Sums of up to 50 products of numbers of up to 3, cubed in the scores' gradients.
    bound = 50 * 27 * EPS
    wanted_x, wanted_table = _through_choice(x.astype(np.float64), table, g)
    assert np.abs(wanted_table).min() > 0
    np.testing.assert_allclose(to_x[0], wanted_x, atol=bound)
    np.testing.assert_allclose(to_table[0], wanted_table, atol=bound)
    apart = table[(x @ table.T).argmax(-1)] - x
    slope = 2 * apart / apart.size
    wanted_x, wanted_table = _through_choice(x.astype(np.float64), table, slope)
    np.testing.assert_allclose(to_x[1], wanted_x - 2 * slope, atol=bound)
    np.testing.assert_allclose(to_table[1], wanted_table, atol=bound)


@pytest.mark.parametrize("name", ["ibq", "lfq"])
def test_entropy_gradients_are_differences_of_the_formula(monkeypatch, name):
    monkeypatch.setattr(search, "MAX_DISTANCES", N * 7)
    config = CONFIGS[name]
    quantizer, variables, x = quantizers.make_quantizer(config), _variables(config), _latents((20,))
    x = (x * 0.01).astype(np.float32)
    grad = jax.jit(jax.grad(lambda x: quantizer.apply(variables, x).losses["entropy"]))
    found = grad(x)
    table = variables["params"]["embedding"].astype(np.float64) if variables else 2 * _sign_table()
    direction, step = np.random.default_rng(3).normal(size=x.shape), 1e-7
    ahead, behind = (_entropy_loss((x + s * step * direction) @ table.T) for s in (1, -1))
    slope = (ahead - behind) / (2 * step)
    # Log probabilities off by 1e-5 at most, see above, against slopes of some tens.
    np.testing.assert_allclose(np.sum(found * direction), slope, rtol=1e-4)
    assert np.isfinite(grad(1e4 * x)).all()  # sure choices: probabilities of zero


def test_fsq_gradients_are_those_of_the_squeezing():
    quantizer, x = quantizers.make_quantizer(CONFIGS["fsq"]), _latents()
    found = jax.jit(jax.grad(lambda x: jnp.sum(quantizer.apply({}, x).vectors)))(x)
    span, _, shift = _fsq_span()
    expected = span / np.cosh(x + shift) ** 2 / (np.array(LEVELS) // 2)
    np.testing.assert_allclose(found, expected, atol=10 * EPS * 2)
