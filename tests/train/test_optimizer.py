"""The schedule, which parameters decay, and one step of AdamW against numpy in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu3_jax.models.language.transformer import Transformer, TransformerConfig
from emu3_jax.models.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig
from emu3_jax.train.optimizer import OptimizerConfig, decay_mask, make_optimizer, make_schedule


@pytest.mark.parametrize(
    "schedule, at_half, at_end",
    [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1.0, 1.0)],
)
def test_schedule_at_named_steps(schedule, at_half, at_end):
    config = OptimizerConfig(
        learning_rate=2.0, warmup_steps=10, schedule=schedule, final_fraction=0.1
    )
    rate = make_schedule(config, 110)
    # The first update is not wasted on a rate of zero; the tenth runs at the peak.
    np.testing.assert_allclose([rate(0), rate(4), rate(9), rate(10)], [0.2, 1.0, 2.0, 2.0], 1e-6)
    np.testing.assert_allclose([rate(60), rate(110)], [2 * at_half, 2 * at_end], 1e-6)


def test_a_warm_up_from_zero_is_one_step_later():
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=10, warmup_from="zero")
    rate = make_schedule(config, 110)
    np.testing.assert_allclose([rate(0), rate(5), rate(10), rate(60)], [0.0, 1.0, 2.0, 1.0], 1e-6)
    at_once = OptimizerConfig(learning_rate=2.0, warmup_steps=0, warmup_from="zero")
    assert make_schedule(at_once, 10)(0) == 2.0


def test_schedule_without_warm_up_and_shorter_than_its_warm_up():
    assert make_schedule(OptimizerConfig(learning_rate=2.0, warmup_steps=0), 10)(0) == 2.0
    rate = make_schedule(OptimizerConfig(learning_rate=2.0, warmup_steps=100), 10)
    np.testing.assert_allclose(rate(9), 0.2, 1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(schedule="cosin"), "schedule must be cosine, linear or constant, got 'cosin'"),
        (dict(warmup_steps=-1), "warmup_steps must be 0 or more"),
        (dict(warmup_from="nil"), "warmup_from must be first_step or zero, got 'nil'"),
        (dict(decayed="all"), "decayed must be kernels or all_but_norms, got 'all'"),
        (dict(learning_rate=-1.0), "learning_rate must be 0 or more"),
        (dict(clip_norm=float("nan")), "clip_norm must be 0 or more"),
        (dict(b2=1.0), r"b2 must be in \[0, 1\)"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**changes)


def _transformer(scan_layers):
    model = Transformer(
        TransformerConfig(64, 16, 32, 2, 4, 2, 4, vocab_multiple=64, scan_layers=scan_layers)
    )
    return lambda key: model.init(key, jnp.zeros((1, 4), jnp.int32))["params"]


def _vision(key):
    config = VisionTokenizerConfig(
        codebook_size=8, ch=4, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(1,),
        norm_groups=2, temporal_downsample_factor=2,
    )  # fmt: skip
    return VisionTokenizer(config).init(key, jnp.zeros((1, 2, 4, 4, 3)))["params"]


@pytest.mark.parametrize(
    "init",
    [_transformer(True), _transformer(False), _vision],
    ids=["transformer", "unscanned transformer", "vision tokenizer"],
)
@pytest.mark.parametrize("boxed", [True, False])
def test_kernels_decay_and_nothing_else(init, boxed):
    params = jax.eval_shape(init, jax.random.key(0))
    mask = nn.unbox(decay_mask(params if boxed else nn.unbox(params)))
    decayed, free = set(), set()
    for path, decays in jax.tree_util.tree_flatten_with_path(mask)[0]:
        (decayed if decays else free).add(path[-1].key)
    assert decayed == {"kernel"}
    # Norms have scales, some of them biases; tables of tokens and of codes are embeddings.
    assert free <= {"scale", "bias", "embedding"} and {"scale", "embedding"} <= free


@pytest.mark.parametrize("init", [_transformer(True), _vision])
def test_all_but_norms_and_biases_decay(init):
    mask = decay_mask(nn.unbox(jax.eval_shape(init, jax.random.key(0))), "all_but_norms")
    leaves = jax.tree_util.tree_flatten_with_path(mask)[0]
    assert {path[-1].key for path, decays in leaves if decays} == {"kernel", "embedding"}
    assert {path[-1].key for path, decays in leaves if not decays} <= {"scale", "bias"}


def test_two_steps_equal_adamw_in_float64():
    config = OptimizerConfig(
        learning_rate=0.1, warmup_steps=1, schedule="linear", b1=0.8, b2=0.9, eps=1e-6,
        weight_decay=0.3, clip_norm=0.5,
    )  # fmt: skip
    optimizer, schedule = make_optimizer(config, total_steps=5)
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(4, 3)), "scale": rng.normal(size=(3,))}
    steps = [{k: rng.normal(size=v.shape) for k, v in params.items()} for _ in range(2)]

    to_float = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)  # noqa: E731
    found = to_float(params)
    state = optimizer.init(found)
    for step, grads in enumerate(steps):
        updates, state = optimizer.update(to_float(grads), state, found, step=step)
        found = jax.tree.map(jnp.add, found, updates)

    m = {k: np.zeros_like(v) for k, v in params.items()}
    v = {k: np.zeros_like(x) for k, x in params.items()}
    for t, grads in enumerate(steps, start=1):
        norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
        assert norm > 0.5  # so that clipping is part of what is compared
        for k, g in grads.items():
            g = g * 0.5 / norm
            m[k] = 0.8 * m[k] + 0.2 * g
            v[k] = 0.9 * v[k] + 0.1 * g**2
            step = (m[k] / (1 - 0.8**t)) / (np.sqrt(v[k] / (1 - 0.9**t)) + 1e-6)
            decay = 0.3 * params[k] if k == "kernel" else 0.0
            params[k] = params[k] - 0.1 * (step + decay)  # the rate of steps 0 and 1 is the peak
    np.testing.assert_allclose([schedule(0), schedule(1)], [0.1, 0.1], 1e-6)
    for k, expected in params.items():
        np.testing.assert_allclose(found[k], expected, rtol=1e-5, atol=1e-6)


def _updates(second_moment, b2=0.95, steps=60):
    """Adam's updates of two weights with steady but noisy gradients of different sizes."""
    optimizer, _ = make_optimizer(
        OptimizerConfig(
            learning_rate=1.0, warmup_steps=0, schedule="constant", b2=b2, weight_decay=0.0,
            clip_norm=0.0, second_moment=second_moment,
        ),
        steps,
    )  # fmt: skip
    params = {"kernel": jnp.zeros((2, 64))}
    state, rng, found = optimizer.init(params), np.random.default_rng(0), []
    for step in range(steps):
        gradients = {"kernel": jnp.asarray(rng.normal(1, 0.3, (2, 64)) * [[1e-4], [10.0]])}
        update, state = optimizer.update(gradients, state, params, step=step)
        found.append(update["kernel"])
    return np.stack(found), state


def test_a_second_moment_in_bfloat16_moves_weights_as_one_in_float32():
    expected, _ = _updates("float32")
    found, state = _updates("bfloat16")
    moments = state[1][0]
    assert moments.nu["kernel"].dtype == jnp.bfloat16
    assert moments.mu["kernel"].dtype == jnp.float32
    # Each step rounds to 2^-9 and forgets 1/20: errors add up to sqrt(10) 2^-9, halved by the root;
    # five times that is never seen in 7,680 draws.
    np.testing.assert_allclose(found, expected, rtol=5 * 10**0.5 * 2.0**-10)
    assert np.abs(found / expected - 1).max() > 0  # it was rounded at all


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"second_moment": "float16"}, "second_moment must be float32 or bfloat16"),
        ({"second_moment": "bfloat16", "b2": 0.999}, "needs b2 of at most 0.98, got 0.999"),
    ],
)
def test_a_second_moment_that_cannot_be_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        OptimizerConfig(**changes)
