"""Residual blocks that are computed again in the backward pass: other memory, the same gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import random_weights

from emu3_jax.config import load_config
from emu3_jax.data.codec.fingerprint import vision_fingerprint
from emu3_jax.models.vision import strips
from emu3_jax.models.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig
from emu3_jax.train import model_flops
from emu3_jax.train.tasks import registry

# Stills, and no more layers than the steps between two levels need: compiling takes longest.
PLAIN = VisionTokenizerConfig(
    codebook_size=64, ch=8, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), norm_groups=4,
    temporal_downsample_factor=1,
)  # fmt: skip
REMAT = dataclasses.replace(PLAIN, remat=True)
PIXELS = np.random.default_rng(1).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)


def _gradient(config, batch_stats):
    """Of the mean square error of two stills, by the params."""

    def loss(params):
        variables = {"params": params, "batch_stats": batch_stats}
        mutable = dict(train=True, mutable=["batch_stats"])
        output, _ = VisionTokenizer(config).apply(variables, PIXELS, **mutable)
        return jnp.mean(jnp.square(output.pixels - PIXELS))

    return jax.grad(loss)


@pytest.mark.parametrize(
    "large",
    [
        pytest.param(strips.LARGE_FRAME, id="whole frames"),
        pytest.param(500, id="strips", marks=pytest.mark.slow),
    ],
)
def test_the_gradient_is_the_same(large, monkeypatch):
    """In strips: encoder and decoder where they have 8 x 8 positions of 8 channels."""
    monkeypatch.setattr(strips, "LARGE_FRAME", large)
    variables = random_weights(VisionTokenizer(PLAIN), PIXELS, 0.3)
    params, stats = variables["params"], variables["batch_stats"]
    plain, remat = _gradient(PLAIN, stats), _gradient(REMAT, stats)
    jitted = jax.jit(plain)
    expected, found = jitted(params), jax.jit(remat)(params)
    # Fused otherwise, every sum rounds otherwise. How far that carries, weights tell that are
    # moved by their last bit.
    rng = np.random.default_rng(2)
    nudge = lambda x: x * (1 + 2.0**-23 * rng.choice([-1, 1], x.shape)).astype(np.float32)  # noqa: E731
    nudged = jitted(jax.tree.map(nudge, params))
    leaves = [jax.tree.leaves(tree) for tree in (expected, nudged)]
    for (path, a), b, c in zip(jax.tree_util.tree_leaves_with_path(found), *leaves, strict=True):
        limit = 8 * (np.abs(b - c).max() + 2.0**-24 * np.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=limit, err_msg=jax.tree_util.keystr(path))


def test_no_more_than_a_forward_pass_is_computed_again():
    variables = random_weights(VisionTokenizer(PLAIN), PIXELS, 0.3)
    params, stats = variables["params"], variables["batch_stats"]
    gradients = (_gradient(config, stats) for config in (PLAIN, REMAT))
    once, again = (model_flops.of_call(gradient, params) for gradient in gradients)
    assert 1.1 * once < again < 1.34 * once


def test_it_is_no_part_of_what_a_tokenizer_is_and_of_its_model_flops():
    variables = random_weights(VisionTokenizer(PLAIN), PIXELS, 0.3)
    assert vision_fingerprint(PLAIN, variables) == vision_fingerprint(REMAT, variables)
    counts = []
    for remat in (False, True):
        config = load_config("configs/vision_tokenizer_nano.py")
        with config.unlocked():
            config.model.update(ch=8, ch_mult=(1, 2), attn_resolutions=(), remat=remat)
        task = registry.make(registry.resolve(config.to_dict()), read_data=False)
        counts.append(task.flops_per_unit())
    assert counts[0] == counts[1] > 0
