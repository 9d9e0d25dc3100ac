"""Large frames go through the vision tokenizer in strips of rows, and nothing else changes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vision_tokenizer import TINY, random_variables

from emu3_jax.models.vision import strips
from emu3_jax.models.vision.convolution import conv_2d, conv_2d_of_doubled, repeat_nearest
from emu3_jax.models.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig

# Three levels, so that there is one that is neither the first nor the last, and widths that shrink.
CONFIG = dataclasses.replace(TINY, ch_mult=(1, 2, 2), attn_resolutions=(2,))


def _normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_rows_are_those_of_the_whole_frame():
    x, kernel = _normal(0, 2, 12, 5, 3), _normal(1, 3, 3, 3, 4)
    convolve = lambda rows: conv_2d(rows, kernel, 1, ((0, 0), (1, 1)))  # noqa: E731
    rows = strips.of_array(x).then(lambda rows, _: jnp.sin(rows), 3).around(1, convolve, 4)
    expected = conv_2d(jnp.sin(x), kernel, 1, ((1, 1), (1, 1)))
    np.testing.assert_allclose(strips.whole(rows), expected, atol=1e-5)
    np.testing.assert_allclose(rows.rows(3, 5), expected[:, 3:8], atol=1e-5)


@pytest.mark.parametrize("height", [1, 2, 3, 4])
def test_a_result_takes_the_place_of_what_it_is_made_from(height, monkeypatch):
    """Above a strip stand results already, where the convolution must see what was there before."""
    monkeypatch.setattr(strips, "STRIP", height)
    monkeypatch.setattr(strips, "LARGE_FRAME", 0)
    x, y, kernel = _normal(0, 2, 12, 5, 3), _normal(1, 2, 12, 5, 3), _normal(2, 3, 3, 3, 3)
    convolve = lambda rows: conv_2d(rows, kernel, 1, ((0, 0), (1, 1)))  # noqa: E731
    found = strips.added(x, strips.of_array(y).around(1, convolve, 3))
    np.testing.assert_allclose(found, x + conv_2d(y, kernel, 1, ((1, 1), (1, 1))), atol=1e-5)


def test_convolution_of_a_doubled_frame():
    x, kernel = _normal(0, 2, 5, 7, 8), _normal(1, 3, 3, 8, 6)
    expected = conv_2d(repeat_nearest(x, (2, 2)), kernel, 1, ((1, 1), (1, 1)))
    # Sums of 72 products of order one.
    np.testing.assert_allclose(conv_2d_of_doubled(x, kernel), expected, atol=72 * 2**-23)


@pytest.mark.parametrize(
    ("shape", "height"),
    [((2, 24, 16, 3), 4), pytest.param((1, 4, 16, 8, 3), 32, marks=pytest.mark.slow)],
)
def test_the_same_codes_and_pixels_in_strips(shape, height, monkeypatch):
    model, variables = VisionTokenizer(CONFIG), random_variables(CONFIG)
    pixels = jax.random.uniform(jax.random.key(3), shape, minval=-1.0, maxval=1.0)
    run = lambda variables, pixels: model.apply(variables, pixels)  # noqa: E731
    expected = jax.jit(run)(variables, pixels)
    monkeypatch.setattr(strips, "LARGE_FRAME", 0)
    monkeypatch.setattr(strips, "STRIP", height)
    found = jax.jit(lambda *arguments: run(*arguments))(variables, pixels)
    # Features are of order one; some 30 layers round them at 2^-24 of that, a few times each.
    assert np.std(expected.latents) > 0.1 and np.std(expected.pixels) > 0.1
    np.testing.assert_allclose(found.latents, expected.latents, atol=2e-5)
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_allclose(found.pixels, expected.pixels, atol=2e-5)


@pytest.mark.parametrize(
    ("method", "shape"), [("encode", (1, 128, 128, 3)), ("decode", (1, 16, 16))]
)
def test_a_large_frame_is_held_twice_at_most(method, shape, monkeypatch):
    """A block's input and its result, and strips; whole frames would be held 3.1 and 5.2 times."""
    config = VisionTokenizerConfig(codebook_size=16, ch=32, ch_mult=(1, 2, 2, 2))
    model, frame = VisionTokenizer(config), 128 * 128 * 32
    monkeypatch.setattr(strips, "LARGE_FRAME", frame // 4)
    monkeypatch.setattr(strips, "STRIP", 4)
    array = jax.ShapeDtypeStruct(shape, jnp.float32 if method == "encode" else jnp.int32)
    pixels = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), pixels))
    lowered = jax.jit(lambda v, x: model.apply(v, x, method=method)).lower(variables, array)
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 2.6 * 4 * frame
