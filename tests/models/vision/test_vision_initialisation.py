"""Where the vision tokenizer's training starts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu3_jax.models.vision.blocks import TemporalDown, TemporalResBlock, TemporalUp
from emu3_jax.models.vision.convolution import CausalConv, conv3x3
from emu3_jax.models.vision.norms import GroupNorm, SpatialNorm
from emu3_jax.models.vision.tokenizer_config import VisionTokenizerConfig

TINY = VisionTokenizerConfig(ch=8, ch_mult=(1, 2), attn_resolutions=(1,), norm_groups=4)


def _normal(shape):
    return jax.random.normal(jax.random.key(0), shape)


def test_kernels_start_with_the_variance_of_their_inputs():
    x = jnp.zeros((1, 4, 4, 32))
    params = nn.unbox(conv3x3(64, TINY).init(jax.random.key(0), x))["params"]
    np.testing.assert_allclose(params["kernel"].std(), np.sqrt(1 / (32 * 9)), rtol=0.02)
    assert not params["bias"].any()


def _initial(layer, *inputs):
    """What a layer makes of its inputs before any training."""
    return layer.apply(layer.init(jax.random.key(1), *inputs), *inputs)


def test_the_norms_of_the_decoder_start_as_plain_ones():
    x, entries = _normal((2, 4, 4, 8)), _normal((2, 2, 2, 4))
    np.testing.assert_array_equal(
        _initial(SpatialNorm(TINY), x, entries), _initial(GroupNorm(TINY), x)
    )


@pytest.mark.parametrize("channels", [4, 5, 16])
def test_time_starts_as_an_identity_for_still_images(channels):
    """silu(y) - silu(-y) = y carries the means through every activation."""
    frame = _normal((1, 1, 3, 3, channels))
    half = channels // 2
    low = half - 2 * (half // 4)
    x = jnp.concatenate([frame[..., :half], -frame[..., :half], frame[..., 2 * half :]], axis=-1)
    clip = jnp.repeat(x, 4, axis=1)
    for layer in (TemporalDown(TINY), TemporalDown(TINY), TemporalUp(TINY), TemporalUp(TINY)):
        clip = nn.silu(_initial(layer, clip))
        clip = _initial(TemporalResBlock(TINY), clip)
        clip = _initial(CausalConv(channels, TINY), clip)
    assert clip.shape[1] == 4
    carried = (clip[..., :half] - clip[..., half : 2 * half])[..., :low]
    expected = jnp.repeat(2 * frame[..., :low], 4, axis=1)
    np.testing.assert_allclose(carried, expected, atol=2e-6)


def test_time_starts_by_telling_two_frames_apart():
    """The mean survives, and half of the difference: all that repeated frames let through."""
    signal = _normal((1, 2, 3, 3, 8))
    clip = nn.silu(_initial(TemporalDown(TINY), jnp.concatenate([signal, -signal], axis=-1)))
    clip = _initial(TemporalUp(TINY), clip)
    older, newer = signal[:, :1, ..., :2] * 2, signal[:, 1:, ..., :2] * 2
    mean, difference = (older + newer) / 2, (newer - older) / 2
    expected = jnp.concatenate([mean - difference / 2, mean + difference / 2], axis=1)
    np.testing.assert_allclose(clip[..., :2], expected, atol=2e-6)
