"""Convolutions with fewer products: as exact as the direct ones, and where they are used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu3_jax.models.vision import winograd
from emu3_jax.models.vision.convolution import conv_2d, conv_3x3, direct


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _in_float64(x, kernel, padding):
    x = np.pad(x.astype(np.float64), ((0, 0), *padding, (0, 0)))
    height, width = x.shape[1] - 2, x.shape[2] - 2
    return sum(
        x[:, i : i + height, j : j + width] @ kernel[i, j].astype(np.float64)
        for i in range(3)
        for j in range(3)
    )


@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 0), (1, 1))])
@pytest.mark.parametrize(
    ("shape", "strip"),
    [((1, 8, 6, 4), 4096), ((2, 9, 7, 3), 4096), ((2, 13, 8, 3), 24), ((1, 5, 5, 40), 2)],
)
def test_the_sums_are_those_of_float64(shape, strip, padding, monkeypatch):
    monkeypatch.setattr(winograd, "STRIP", strip)
    x, kernel = _normal(0, *shape), _normal(1, 3, 3, shape[-1], 5)
    expected = _in_float64(x, kernel, padding)
    found = winograd.conv_3x3(x, kernel, padding)
    plain = np.asarray(direct(x, kernel, 1, padding))
    # 9 I products of order one, summed; inputs and weights are sums of four and nine themselves.
    scale = np.sqrt(9 * shape[-1]) * 2**-24
    assert found.shape == plain.shape == expected.shape
    assert np.abs(found - expected).max() < 16 * scale
    assert np.abs(plain - expected).max() < 16 * scale


def test_gradients_are_the_direct_ones():
    x, kernel = _normal(0, 2, 9, 7, 3), _normal(1, 3, 3, 3, 5)
    padding = ((1, 1), (1, 1))
    for argument in (0, 1):
        found, expected = (
            jax.grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), argument)(x, kernel)
            for f in (
                lambda x, k: conv_3x3(x, k, padding),
                lambda x, k: direct(x, k, 1, padding),
            )
        )
        # The cosine of results that are rounded otherwise, summed over up to 126 positions.
        np.testing.assert_allclose(found, expected, atol=2e-4)


def _uses_it(x, kernel, stride=1, padding=((1, 1), (1, 1))):
    program = jax.make_jaxpr(lambda x, k: conv_2d(x, k, stride, padding))(x, kernel)
    return "custom_jvp_call" in str(program)


def test_where_it_is_used():
    array = jax.ShapeDtypeStruct
    wide, narrow = array((1, 32, 32, 256), jnp.float32), array((1, 32, 32, 128), jnp.float32)
    kernel = array((3, 3, 256, 256), jnp.float32)
    assert _uses_it(wide, kernel)
    assert not _uses_it(wide, kernel, stride=2)
    assert not _uses_it(narrow, array((3, 3, 128, 256), jnp.float32))
    assert not _uses_it(array((9, 16, 32, 256), jnp.float32), kernel)
    assert not _uses_it(wide, array((2, 2, 256, 256), jnp.float32))
    thousand = array((3, 3, 1024, 1024), jnp.float32)
    assert _uses_it(array((1, 64, 64, 1024), jnp.float32), thousand)
    assert not _uses_it(array((1, 64, 128, 1024), jnp.float32), thousand)
    half = array(wide.shape, jnp.bfloat16), array(kernel.shape, jnp.bfloat16)
    assert not _uses_it(*half)
    with jax.set_mesh(jax.make_mesh((8,), ("data",))):
        assert not _uses_it(wide, kernel)


def test_weights_of_many_layers_are_not_held_at_once():
    """The sixteen sums of one kernel take 4 MiB, those of twelve would take 48 at once."""
    x = jax.ShapeDtypeStruct((1, 32, 32, 256), jnp.float32)
    kernels = [jax.ShapeDtypeStruct((3, 3, 256, 256), jnp.float32)] * 12

    def layers(x, kernels):
        for kernel in kernels:
            x = jnp.tanh(conv_2d(x, kernel, 1, ((1, 1), (1, 1))))
        return x

    memory = jax.jit(layers).lower(x, kernels).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 24 * 2**20
