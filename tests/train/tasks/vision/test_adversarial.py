"""Adversarial losses: formulas, gradients counted once, any mesh alike, and that it learns."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from emu3_jax import sharding
from emu3_jax.models.vision.discriminator import DiscriminatorConfig, PatchDiscriminator
from emu3_jax.sharding import MeshConfig
from emu3_jax.train.tasks.vision import adversarial
from emu3_jax.train.tasks.vision.adversarial import (
    AdversarialConfig,
    adversarial_terms,
    gradient_through,
)

RNG = np.random.default_rng(0)
REAL, FAKE = (RNG.normal(size=(4, 3, 3)) * 2 for _ in range(2))
MODEL = PatchDiscriminator(DiscriminatorConfig(width=4, layers=1, norm_groups=2))


def _discriminate(params, pixels):
    return MODEL.apply({"params": params}, pixels)


def _images(seed, *shape):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    """Of a discriminator whose logits are about 1, so that both branches of a hinge are met."""
    params = nn.unbox(jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))["params"]
    return jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, params)


def test_losses_against_their_formulas():
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    expected = {
        "hinge": (
            np.maximum(1 - REAL, 0).mean() + np.maximum(1 + FAKE, 0).mean(),
            -FAKE.mean(),
        ),
        "non_saturating": (
            -np.log(sigmoid(REAL)).mean() - np.log(1 - sigmoid(FAKE)).mean(),
            -np.log(sigmoid(FAKE)).mean(),
        ),
    }
    assert expected.keys() == adversarial.LOSSES.keys()
    for kind, (judge, maker) in expected.items():
        found = adversarial.discriminator_loss(jnp.float32(REAL), jnp.float32(FAKE), kind)
        np.testing.assert_allclose(found, judge, rtol=1e-6)  # 36 float32 terms
        found = adversarial.generator_loss(jnp.float32(FAKE), kind)
        np.testing.assert_allclose(found, maker, rtol=1e-6)


def test_the_penalty_and_its_gradient_of_a_discriminator_known_in_closed_form():
    x, w = _images(0, 3, 4, 3), _images(1, 4, 3)
    # Linear: each image's gradient is w. Quadratic: it is 2 w^2 x.
    linear = lambda w: adversarial.gradient_penalty(  # noqa: E731
        lambda x: jnp.sum(w * x, axis=(1, 2)), x
    )
    quadratic = lambda w: adversarial.gradient_penalty(  # noqa: E731
        lambda x: jnp.square(w * x), x
    )
    w64, x64 = w.astype(np.float64), x.astype(np.float64)
    for penalty, value, gradient in [
        (linear, (w64**2).sum(), 2 * w64),
        (quadratic, 4 * (w64**4 * x64**2).sum() / 3, 16 * w64**3 * (x64**2).sum(0) / 3),
    ]:
        found, slope = jax.value_and_grad(penalty)(jnp.asarray(w))
        np.testing.assert_allclose(found, value, rtol=1e-6)
        np.testing.assert_allclose(slope, gradient, rtol=1e-5)


def test_the_penalty_of_the_network_is_that_of_one_image_at_a_time(params):
    x = _images(0, 2, 8, 8, 3)

    def one(params, image):
        logits = lambda y: jnp.sum(_discriminate(params, y[None]))  # noqa: E731
        return jnp.sum(jnp.square(jax.grad(logits)(image)))

    direct = lambda p: (one(p, x[0]) + one(p, x[1])) / 2  # noqa: E731
    ours = lambda p: adversarial.gradient_penalty(lambda y: _discriminate(p, y), x)  # noqa: E731
    expected, found = (jax.jit(jax.value_and_grad(f))(params) for f in (direct, ours))
    _assert_close(found, expected, 1e-4)


@pytest.mark.parametrize(
    "start, warmup, step, expected",
    [(10, 4, 9, 0.0), (10, 4, 10, 0.25), (10, 4, 12, 0.75), (10, 4, 13, 1.0), (10, 4, 99, 1.0),
     (10, 0, 9, 0.0), (10, 0, 10, 1.0), (0, 0, 0, 1.0), (0, 2, 0, 0.5)],
)  # fmt: skip
def test_the_ramp(start, warmup, step, expected):
    assert adversarial.ramp(jnp.int32(step), start, warmup) == expected


def test_the_adaptive_weight_by_hand():
    g = jnp.asarray([3.0, 4.0, 0.0, 0.0])
    weight = lambda a, b, limit=1e4: float(adversarial.adaptive_weight(a, b, limit))  # noqa: E731
    # Norms 5 and 0.5; times sqrt(4) they are 10 and 1.
    assert weight(g, 0.1 * g) == pytest.approx(10 / (1 + 1e-4), rel=1e-6)
    assert weight(g, 0.1 * g, limit=7.0) == 7.0
    assert weight(g, 0 * g) == 1e4  # 10 / 1e-4 is above the limit
    assert weight(0 * g, g) == 0.0
    # Of means over twice as many values of the same kind: the same weight.
    small = 1e-4 * g
    twice = [jnp.concatenate([x, x]) / 2 for x in (g, small)]
    assert weight(*twice) == pytest.approx(weight(g, small), rel=1e-6)
    assert jax.grad(lambda a: adversarial.adaptive_weight(a, g, 9.0))(g).tolist() == [0] * 4


def test_gradient_through_is_the_gradient_of_the_direct_formula():
    a, b, w = _images(0, 5, 6), _images(1, 5, 6), _images(2, 6, 6)
    first = lambda x: jnp.mean(jnp.sin(x @ a.T))  # noqa: E731
    second = lambda x: jnp.mean(jnp.square(x - b[:, :6]))  # noqa: E731
    make = lambda w: jnp.tanh(b @ w)  # noqa: E731

    def direct(w):
        return 0.3 * first(make(w)) + 0.7 * second(make(w)) + jnp.sum(w**2)

    def through(w):
        pixels = make(w)
        (v1, g1), (v2, g2) = (jax.value_and_grad(f)(pixels) for f in (first, second))
        term = gradient_through(pixels, 0.3 * v1 + 0.7 * v2, 0.3 * g1 + 0.7 * g2)
        return term + jnp.sum(w**2)

    expected, found = (jax.value_and_grad(f)(w) for f in (direct, through))
    _assert_close(found, expected, 1e-5)


def _objective(params, tokenizer, target, config, step):
    """The task's loss in small: a tokenizer that is one number, an L2 error, both sides."""
    pixels = tokenizer * target
    error = lambda x: jnp.mean(jnp.square(x - target))  # noqa: E731
    value, gradient = jax.value_and_grad(error)(jax.lax.stop_gradient(pixels))
    terms = adversarial_terms(_discriminate, params, pixels, target, config, step, gradient)
    made = gradient_through(
        pixels, value + terms.generator_value, gradient + terms.generator_gradient
    )
    return made + terms.discriminator_loss, terms


def _gradients(params, config, step, target):
    args = (params, jnp.float32(0.6), target)
    f = jax.value_and_grad(lambda *a: _objective(*a, config, step), argnums=(0, 1), has_aux=True)
    return jax.jit(f)(*args)


def _assert_close(found, expected, rtol):
    """Equal to `rtol` of the largest number of each array: sums in another order."""
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * np.abs(y).max())


@pytest.mark.parametrize(
    "config",
    [
        AdversarialConfig(weight=0.5, adaptive=False, start=3, warmup=4, penalty=0.1),
        AdversarialConfig(weight=0.5, kind="non_saturating", start=3, warmup=4),
    ],
    ids=["fixed, hinge, penalty", "adaptive, non-saturating"],
)
def test_each_side_learns_from_its_own_part_alone(params, config):
    target, step = _images(3, 4, 8, 8, 3), 4  # the ramp is at a half
    (_, terms), (of_params, of_tokenizer) = _gradients(params, config, step, target)
    fake = 0.6 * target

    def judge(params):
        real, made = _discriminate(params, target), _discriminate(params, fake)
        loss = adversarial.discriminator_loss(real, made, config.kind)
        penalty = adversarial.gradient_penalty(lambda x: _discriminate(params, x), target)
        return loss + config.penalty * penalty

    maker = lambda x: adversarial.generator_loss(_discriminate(params, x), config.kind)  # noqa: E731
    value, slope = jax.jit(jax.value_and_grad(maker))(fake)
    error_slope = 2 * (fake - target) / target.size
    weight = 0.5 * 0.5
    if config.adaptive:
        norms = [np.sqrt(target.size) * np.linalg.norm(g) for g in (error_slope, slope)]
        weight *= norms[0] / (norms[1] + 1e-4)
    loss, expected = jax.jit(jax.value_and_grad(judge))(params)
    _assert_close(of_params, expected, 1e-4)
    _assert_close(of_tokenizer, np.sum((error_slope + weight * slope) * target), 1e-4)
    _assert_close((terms.discriminator_loss, terms.generator_value), (loss, weight * value), 1e-5)
    _assert_close(terms.metrics["weight"], weight, 1e-5)
    assert ("penalty" in terms.metrics) == bool(config.penalty)


def test_before_the_start_neither_side_learns(params):
    config = AdversarialConfig(weight=0.5, start=5, warmup=3)
    target = _images(3, 4, 8, 8, 3)
    (_, terms), (of_params, of_tokenizer) = _gradients(params, config, 4, target)
    assert not any(np.any(x) for x in jax.tree.leaves(of_params))
    _assert_close(of_tokenizer, np.mean(2 * (0.6 - 1) * target**2), 1e-5)
    assert terms.discriminator_loss == terms.generator_value == terms.metrics["weight"] == 0
    assert terms.metrics["discriminator"] > 0  # what it would be is seen all the same


def test_eight_devices_give_the_losses_and_gradients_of_one():
    config = AdversarialConfig(weight=0.5, penalty=0.1)
    target = _images(3, 8, 4, 8, 8, 3)
    boxed = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 4, 8, 8, 3)))["params"]
    params = nn.unbox(boxed)
    expected = _gradients(params, config, 0, target)
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=4))
    layout = sharding.state_shardings(boxed, mesh)
    with jax.set_mesh(mesh):
        here = NamedSharding(mesh, sharding.partition_spec("batch"))
        found = _gradients(jax.device_put(params, layout), config, 0, jax.device_put(target, here))
    _assert_close(found, expected, 1e-4)
    kernel = layout["conv_1"]["kernel"]
    assert kernel.shard_shape((3, 4, 4, 4, 8)) == (3, 4, 4, 4, 2)


@pytest.mark.parametrize("kind", adversarial.LOSSES)
def test_it_learns_to_part_two_sets(kind):
    real = np.tile(np.indices((8, 8)).sum(0) % 2 * 1.0 - 0.5, (8, 1, 1))[..., None]
    real = (real + 0.2 * _images(0, 8, 8, 8, 3)).astype(np.float32)
    fake = 0.5 * _images(1, 8, 8, 8, 3)
    config = AdversarialConfig(weight=1.0, kind=kind, adaptive=False)
    params = nn.unbox(jax.jit(MODEL.init)(jax.random.key(0), real))["params"]
    optimizer = optax.adam(0.02)

    @jax.jit
    def step(params, state):
        def loss(params):
            terms = adversarial_terms(_discriminate, params, fake, real, config, 0, None)
            return terms.discriminator_loss, terms.metrics

        gradient, metrics = jax.grad(loss, has_aux=True)(params)
        update, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, update), state, metrics

    state = optimizer.init(params)
    for _ in range(20):
        params, state, metrics = step(params, state)
    assert metrics["accuracy_real"] > 0.95 and metrics["accuracy_fake"] > 0.95
    assert metrics["logits_real"] > 0 > metrics["logits_fake"]


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(kind="wgan"), "kind must be one of hinge, non_saturating, found 'wgan'"),
        (dict(weight=-0.1), "weight must be 0 or more, found -0.1"),
        (dict(penalty=float("nan")), "penalty must be 0 or more, found nan"),
        (dict(adaptive_limit=0), "adaptive_limit must be above 0, found 0"),
        (dict(adaptive=1), "adaptive must be True or False, found 1"),
        (dict(start=-1), "start must be a whole number of steps from 0, found -1"),
        (dict(warmup=2.5), "warmup must be a whole number of steps from 0, found 2.5"),
    ],
)
def test_a_wrong_config(change, message):
    with pytest.raises(ValueError, match=message):
        AdversarialConfig(**change)
