"""Dropout: what share is zeroed, and that nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu3_jax.models.language.layers import dropout


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
