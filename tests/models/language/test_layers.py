"""Dropout, and the gradients of `Linear`: those of JAX, whichever matrix is on the left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu3_jax.models import cpu
from emu3_jax.models.language.layers import Linear, dropout
from emu3_jax.models.language.transformer_config import REMAT

B, S = 2, 5
SHAPES = {"matrix": ((6, 8), 1), "to heads": ((6, 4, 2), 1), "from heads": ((4, 2, 6), 2)}


def _inputs(shape, num_in):
    rng = np.random.default_rng(0)
    shapes = ((B, S, *shape[:num_in]), shape, (B, S, *shape[num_in:]))
    return [rng.normal(size=size).astype(np.float32) for size in shapes]


def _gradients(shape, num_in, dtype="float32", remat="none"):
    x, kernel, weights = _inputs(shape, num_in)
    layer = Linear(shape, ("any",) * len(shape), dtype, "float32", num_in)

    def total(x, kernel):
        y = layer.apply({"params": {"kernel": kernel}}, jnp.asarray(x, dtype))
        return jnp.sum(y.astype(jnp.float32) * weights)

    total = jax.checkpoint(total, policy=REMAT[remat]) if remat != "none" else total
    return jax.jit(jax.grad(total, (0, 1)))(x, kernel)


@pytest.mark.parametrize("remat", ["none", "dots"])
@pytest.mark.parametrize("name", SHAPES)
def test_gradients_equal_those_in_float64(name, remat):
    shape, num_in = SHAPES[name]
    x, kernel, weights = (a.astype(np.float64) for a in _inputs(shape, num_in))
    flat_in, flat_out = int(np.prod(shape[:num_in])), int(np.prod(shape[num_in:]))
    dy = weights.reshape(-1, flat_out)
    expected = dy @ kernel.reshape(flat_in, flat_out).T, x.reshape(-1, flat_in).T @ dy
    assert cpu.narrow_left_pays("float32")
    for found, right in zip(_gradients(shape, num_in, remat=remat), expected, strict=True):
        # Sums of up to 10 products: sqrt(10) < 4 roundings of the largest entry.
        np.testing.assert_allclose(
            np.reshape(found, right.shape), right, rtol=0, atol=4 * 2**-23 * np.abs(right).max()
        )


@pytest.mark.parametrize("name", SHAPES)
def test_the_inputs_are_on_the_left_of_the_gradient_of_a_kernel(name):
    """Of its two free sides the program has that of the inputs first, and transposes nothing."""
    shape, num_in = SHAPES[name]
    program = str(jax.make_jaxpr(lambda: _gradients(shape, num_in))())
    assert "transpose" not in program
    assert "transpose" in str(jax.make_jaxpr(lambda: _gradients(shape, num_in, "bfloat16"))())


def test_smaller_types_are_left_to_jax():
    assert not cpu.narrow_left_pays("bfloat16")


@pytest.mark.parametrize("shape", [(64, 1024), (1024, 67), (999,)])
@pytest.mark.parametrize(("rate", "share"), [(0.1, 26 / 256), (0.5, 0.5)])
def test_share_and_scale(shape, rate, share):
    x = jnp.arange(1.0, 1.0 + np.prod(shape)).reshape(shape)
    y = np.asarray(dropout(x, rate, jax.random.key(0)))
    zeros = np.mean(y == 0.0)
    # Four standard errors of a mean of that many draws.
    assert abs(zeros - share) < 4 * np.sqrt(share * (1 - share) / x.size)
    kept = y != 0.0
    np.testing.assert_allclose(y[kept], np.asarray(x)[kept] / (1 - share), rtol=1e-6)


def test_neighbours_and_rows_are_drawn_apart():
    """Four elements share a word of random bits, but not their fate."""
    zeros = np.asarray(dropout(jnp.ones((4096, 8)), 0.5, jax.random.key(1))) == 0.0
    both = np.corrcoef(zeros.T.astype(float))
    # 28 pairs of columns, 4,096 rows: five standard errors of a correlation of zero.
    assert np.abs(both - np.eye(8)).max() < 5 / np.sqrt(4096)


def test_the_type_stays_and_the_highest_rate_is_finite():
    y = dropout(jnp.ones((512,), jnp.bfloat16), 0.999, jax.random.key(2))
    assert y.dtype == jnp.bfloat16 and np.isfinite(np.asarray(y, np.float32)).all()
