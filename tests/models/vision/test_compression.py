"""How far a vision tokenizer compresses is a matter of its config: all of these train and code."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import random_weights
from tiny_tasks import vision_task

from emu3_jax.data.pixels.pixel_batches import PixelConfig, PixelGroup
from emu3_jax.interop.vision import tokenizer_files
from emu3_jax.models.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig

SIDE, FRAMES = 32, 8


def _config(space, time, codes):
    return VisionTokenizerConfig(
        codebook_size=codes, temporal_downsample_factor=time, ch=4, norm_groups=2, num_res_blocks=1,
        ch_mult=(1,) * space.bit_length(), attn_resolutions=(),
    )  # fmt: skip


@pytest.mark.parametrize(
    "space, time, codes",
    [
        (8, 1, 1024),
        pytest.param(16, 2, 131072, marks=pytest.mark.slow),
        pytest.param(8, 4, 131072, marks=pytest.mark.slow),
        (16, 8, 1024),
    ],
)
def test_grids_of_codes_and_the_loss(space, time, codes):
    """Traced, not compiled."""
    config = _config(space, time, codes)
    model = VisionTokenizer(config)
    frames = FRAMES if time > 1 else 4
    groups = (
        PixelGroup("stills", "stills", SIDE, 2),
        PixelGroup("clips", "clips", SIDE, 2, frames),
    )
    data = PixelConfig("unused", groups=groups)
    task = vision_task(config, data)
    variables = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))
    grid = (SIDE // space, SIDE // space)
    for shape, expected in (
        ((2, SIDE, SIDE, 3), (2, *grid)),
        ((2, frames, SIDE, SIDE, 3), (2, frames // time, *grid)),
    ):
        pixels = jax.ShapeDtypeStruct(shape, jnp.float32)
        encode = jax.eval_shape(lambda v, x: model.apply(v, x, method="encode"), variables, pixels)
        assert (encode.shape, encode.dtype) == (expected, jnp.int32)
        decode = jax.eval_shape(lambda v, c: model.apply(v, c, method="decode"), variables, encode)
        assert decode.shape == shape
    params = variables.pop("params")
    batch = {g.name: jax.ShapeDtypeStruct(g.shape, jnp.float32) for g in groups}
    loss = lambda p, s, b: task.loss(p, s, b, jax.random.key(0), 0)  # noqa: E731
    found = jax.eval_shape(loss, params, variables, batch)
    assert found.total.shape == () and {"psnr/stills", "psnr/clips"} <= set(found.metrics)


@pytest.mark.parametrize("space, time, codes", [(16, 1, 1024), (8, 8, 131072)])
def test_the_ends_of_the_range_code_and_are_stored(space, time, codes, tmp_path):
    config = _config(space, time, codes)
    model = VisionTokenizer(config)
    clip = np.random.default_rng(0).uniform(-1, 1, (1, 2 * time, 16, 16, 3)).astype(np.float32)
    variables = random_weights(model, clip, 0.5)
    tokenizer_files.save(tmp_path, config, variables)
    stored, loaded = tokenizer_files.load(tmp_path)
    assert stored == config
    code = jax.jit(lambda v, x: model.apply(v, x, method="encode"))
    changed = clip.copy()
    changed[:, time:] *= -1
    found, other = code(loaded, clip), code(variables, changed)
    np.testing.assert_array_equal(found[:, 0], other[:, 0])  # does not know what comes behind
    assert found.min() >= 0 and found.max() < codes and len(np.unique(found)) > 1
    pixels = jax.jit(lambda v, c: model.apply(v, c, method="decode"))(variables, found)
    assert pixels.shape == clip.shape and np.isfinite(pixels).all()
