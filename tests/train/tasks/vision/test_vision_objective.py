"""The whole objective: its terms add up, each network learns from its own, what is fixed stays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_tasks import vision_task

from emu3_jax.data.codec.fingerprint import vision_fingerprint
from emu3_jax.data.pixels.pixel_batches import PixelConfig, PixelGroup
from emu3_jax.interop.vision import perceptual_weights
from emu3_jax.models.features.lpips import lpips
from emu3_jax.models.vision.discriminator import DiscriminatorConfig
from emu3_jax.models.vision.tokenizer import VisionTokenizerConfig
from emu3_jax.train.optimizer import OptimizerConfig, make_optimizer
from emu3_jax.train.step import make_train_step
from emu3_jax.train.task import TrainState
from emu3_jax.train.tasks.vision import adversarial
from emu3_jax.train.tasks.vision.adversarial import AdversarialConfig
from emu3_jax.train.tasks.vision.codebook_maintenance import AVERAGE, CodebookConfig
from emu3_jax.train.tasks.vision.vision_objective import (
    DISCRIMINATOR,
    ENCODING,
    VisionLossConfig,
    VisionObjective,
    tokenizer_params,
)

KEY = jax.random.key(0)
SIDE = 16  # the least that passes VGG16's four poolings
MODEL = VisionTokenizerConfig(
    codebook_size=16, ch=4, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(),
    norm_groups=2, temporal_downsample_factor=2,
)  # fmt: skip
AGAINST = AdversarialConfig(weight=0.3, start=2, warmup=2)
DISCRIMINATOR_SIZES = DiscriminatorConfig(width=4, layers=1, norm_groups=2)
STILLS = PixelGroup("stills", "stills", SIDE, 2)
CLIPS = PixelGroup("clips", "clips", SIDE, 1, 2)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, schedule="constant")


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """File of a narrow VGG16 with heads."""
    rng, width = np.random.default_rng(0), 3
    tree, channels = {}, 3
    for block, count in enumerate((2, 2, 3, 3, 3)):
        for i in range(count):
            kernel = rng.normal(0, 0.3, (3, 3, channels, width)).astype(np.float32)
            tree[f"conv{block + 1}_{i + 1}"] = {"kernel": kernel, "bias": np.zeros(width, "f4")}
            channels = width
    heads = tuple(rng.uniform(0, 1, width).astype(np.float32) for _ in range(5))
    path = tmp_path_factory.mktemp("vgg") / "vgg.safetensors"
    perceptual_weights.save(path, {"vgg": tree, "heads": heads})
    return str(path)


def _full(vgg, **changes) -> VisionLossConfig:
    settings = dict(
        perceptual=0.5, perceptual_weights=vgg, adversarial=AGAINST,
        discriminator=DISCRIMINATOR_SIZES, discriminator_rate=0.5,
    )  # fmt: skip
    return VisionLossConfig(**(settings | changes))


def _task(loss, groups=(STILLS,), model=MODEL, **codebook):
    data = PixelConfig("unused", groups=groups)
    return vision_task(model, data, loss, 100, CodebookConfig(**codebook))


def _state(task, optimizer) -> TrainState:
    variables = dict(nn.unbox(jax.jit(task.init)(KEY)))
    params = variables.pop("params")
    return TrainState(jnp.int32(0), params, variables, optimizer.init(params), None)


def _batch(groups=(STILLS,), seed=0):
    rng = np.random.default_rng(seed)
    return {g.name: rng.uniform(-1, 1, g.shape).astype(np.float32) for g in groups}


def test_value_and_gradient_are_those_of_the_sum_of_the_terms(vgg):
    """Against the plain formula, in which every network is differentiated through the tokenizer."""
    config = _full(vgg)
    objective, step = VisionObjective(MODEL, config), jnp.int32(3)
    task = _task(config)
    variables = nn.unbox(jax.jit(task.init)(KEY))
    params, stats = variables["params"], variables["batch_stats"]
    target = _batch()["stills"]
    weights = perceptual_weights.load(vgg)[0]

    def plain(params):
        discriminator = params[DISCRIMINATOR]["stills"]
        output, _ = objective.model.apply(
            {"params": tokenizer_params(params), "batch_stats": stats}, target, train=True,
            mutable=["batch_stats"],
        )  # fmt: skip
        error = output.pixels - target
        smooth = jnp.mean(error**2) + 0.1 * jnp.mean(jnp.abs(error))
        smooth += 0.5 * jnp.mean(lpips(weights, output.pixels, target))
        fixed = jax.lax.stop_gradient

        def judge(p, x):
            return objective.discriminator.apply({"params": p}, x)

        game = -jnp.mean(judge(fixed(discriminator), output.pixels))
        real, fake = judge(discriminator, target), judge(discriminator, fixed(output.pixels))
        own = jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))
        codes = 0.25 * output.losses["commitment"] + output.losses["codebook"]
        return smooth + config.adversarial.weight * game + own - fixed(own) + codes

    fixed_weight = dataclasses.replace(AGAINST, adaptive=False)
    objective.config = dataclasses.replace(config, adversarial=fixed_weight)
    found = jax.jit(jax.value_and_grad(lambda p: objective(p, variables, target, KEY, step).total))(
        params
    )
    expected = jax.jit(jax.value_and_grad(plain))(params)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found[1]), jax.tree.leaves(expected[1]), strict=True
    ):
        # Sums in another order: 1e-7 of the largest gradient a few hundred times.
        scale = max(float(jnp.abs(b).max()), 1e-3)
        np.testing.assert_allclose(
            a, b, rtol=1e-3, atol=1e-4 * scale, err_msg=jax.tree_util.keystr(path)
        )


@pytest.fixture(scope="module")
def trained(vgg):
    """Four steps with everything on, stills and clips: states (first one first) and metrics."""
    groups = (STILLS, CLIPS)
    task = _task(_full(vgg, perceptual_frames=1), groups, revive_every=0, start="as_is")
    optimizer, _ = task.optimizer(OPTIMIZER, 10)
    step = jax.jit(make_train_step(task, optimizer, key=KEY))
    states, metrics = [_state(task, optimizer)], []
    for seed in range(4):
        state, found = step(states[-1], _batch(groups, seed))
        states.append(state)
        metrics.append(jax.device_get(found))
    return states, metrics


def _moved(before, after):
    return any(
        bool((a != b).any())
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    )


def test_the_discriminator_begins_at_its_step(trained):
    states, metrics = trained
    discriminators = [state.params[DISCRIMINATOR] for state in states]
    assert [_moved(a, b) for a, b in zip(discriminators, discriminators[1:], strict=False)] == [
        False, False, True, True,
    ]  # fmt: skip
    assert _moved(states[0].params["decoder"], states[1].params["decoder"])
    weights = [m["adversarial/stills_weight"][0] for m in metrics]
    assert weights[:2] == [0, 0] and weights[2] > 0
    names = {"loss/stills_perceptual", "loss/clips_perceptual", "adversarial/clips_generator"}
    assert names <= metrics[0].keys()
    assert all(np.isfinite(m["loss"][0]) for m in metrics)
    parts = np.array(
        [[m[f"gradient_norm/{n}"][0] for n in ("tokenizer", "discriminator")] for m in metrics]
    )
    assert (parts[:2, 1] == 0).all() and (parts[2:, 1] > 0).all()
    whole = [m["gradient_norm"][0] for m in metrics]
    np.testing.assert_allclose(np.hypot(*parts.T), whole, rtol=1e-5)


def test_stills_and_clips_have_discriminators_of_their_own(trained):
    discriminators = trained[0][-1].params[DISCRIMINATOR]
    assert set(discriminators) == {"stills", "clips"}
    ranks = {k: max(x.ndim for x in jax.tree.leaves(v)) for k, v in discriminators.items()}
    assert ranks == {"stills": 4, "clips": 5}


def test_each_part_has_its_learning_rate_and_what_is_frozen_none(vgg):
    params = {name: {"kernel": jnp.ones((2, 2))} for name in (*ENCODING, "decoder", DISCRIMINATOR)}
    gradients = jax.tree.map(jnp.ones_like, params)
    task = _task(_full(vgg, decoder_only=True))
    optimizer, schedule = task.optimizer(OPTIMIZER, 10)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params, step=0)
    alone, _ = make_optimizer(OPTIMIZER, 10)
    expected, _ = alone.update(
        {"decoder": gradients["decoder"]}, alone.init({"decoder": params["decoder"]}),
        {"decoder": params["decoder"]}, step=0,
    )  # fmt: skip
    np.testing.assert_allclose(updates["decoder"]["kernel"], expected["decoder"]["kernel"])
    # Adam's first step is as long as the learning rate; the discriminator's kernels do not decay.
    rate = 0.5 * OPTIMIZER.learning_rate
    np.testing.assert_allclose(updates[DISCRIMINATOR]["kernel"], -rate, rtol=1e-5)
    assert all(not updates[name]["kernel"].any() for name in ENCODING)
    assert schedule(5) == OPTIMIZER.learning_rate


def test_a_decoder_trained_alone_keeps_every_code_valid():
    groups = (STILLS, CLIPS)
    task = _task(VisionLossConfig(decoder_only=True), groups)
    optimizer, _ = task.optimizer(OPTIMIZER, 10)
    before = _state(task, optimizer)
    step = jax.jit(make_train_step(task, optimizer, key=KEY))
    after, metrics = step(before, _batch(groups))
    for name in ENCODING:
        assert not _moved(before.params[name], after.params[name]), name
    assert _moved(before.params["decoder"], after.params["decoder"])
    old, new = (s.model_state["batch_stats"] for s in (before, after))
    assert not _moved(old["encoder"], new["encoder"]) and _moved(old["decoder"], new["decoder"])
    prints = {
        vision_fingerprint(MODEL, {"params": s.params, "batch_stats": s.model_state["batch_stats"]})
        for s in (before, after)
    }
    assert len(prints) == 1
    assert "loss/stills_commitment" not in metrics


@pytest.mark.parametrize("start", [pytest.param("latents", marks=pytest.mark.slow), "kmeans"])
def test_a_codebook_of_averages_follows_its_latents(start):
    loss = VisionLossConfig(codebook=0.0)
    task = _task(loss, average_decay=0.5, start=start, revive_every=0)
    optimizer, _ = task.optimizer(OPTIMIZER, 10)
    state = _state(task, optimizer)
    step = jax.jit(make_train_step(task, optimizer, key=KEY))
    entries = [state.params["quantize"]["embedding"]]
    for seed in range(2):
        state, _ = step(state, _batch(seed=seed))
        entries.append(state.params["quantize"]["embedding"])
    counts, sums = state.model_state[AVERAGE]
    # After the second step the entries are the averages, smoothed by less than a part in 1,000.
    used = np.asarray(counts) > 0.1
    np.testing.assert_allclose(
        np.asarray(entries[2])[used], (sums / counts[:, None])[used], rtol=1e-3, atol=1e-6
    )
    variables = {"params": state.params, "batch_stats": state.model_state["batch_stats"]}
    latents = jax.jit(task.model.apply)(variables, _batch(seed=1)["stills"]).latents
    # On the latents' scale; the initial entries lie within 1/16 of the origin.
    assert np.asarray(entries[1]).std() > 0.3 * np.asarray(latents).std()


@pytest.mark.parametrize(
    "config, message",
    [
        (lambda: VisionLossConfig(perceptual=1.0), "perceptual needs perceptual_weights"),
        (lambda: VisionLossConfig(l2=-1.0), "l2 must be 0 or more"),
        (lambda: VisionLossConfig(perceptual_frames=-1), "perceptual_frames must be 0 or more"),
        (lambda: CodebookConfig(start="means"), "start must be one of as_is, latents, kmeans"),
        (lambda: CodebookConfig(average_decay=1.0), r"average_decay must be in \[0, 1\)"),
        (
            lambda: _task(VisionLossConfig(decoder_only=True), average_decay=0.9),
            "codebook.average_decay moves the codebook, which loss.decoder_only keeps",
        ),
        (
            lambda: _task(
                VisionLossConfig(),
                model=dataclasses.replace(MODEL, quantizer="ibq"),
                average_decay=0.9,
            ),
            "codebook.average_decay goes with the quantizers nearest and cosine",
        ),
    ],
)
def test_settings_that_cannot_be_used(config, message):
    with pytest.raises(ValueError, match=message):
        config()


def test_the_penalty_and_the_loss_of_the_discriminator_reach_it_alone(vgg):
    """The pixels' gradient from `adversarial_terms` is a constant, also with the penalty on."""
    config = dataclasses.replace(AGAINST, penalty=1.0, adaptive=False)
    objective = VisionObjective(MODEL, _full(vgg, adversarial=config))
    target = _batch()["stills"]
    params = objective.init_discriminator(KEY, {"stills": target})["stills"]
    params = nn.unbox(params)

    def discriminators_loss(pixels):
        return adversarial.adversarial_terms(
            lambda p, x: objective.discriminator.apply({"params": p}, x),
            params, pixels, target, config, jnp.int32(9), None,
        ).discriminator_loss  # fmt: skip

    assert not np.asarray(jax.grad(discriminators_loss)(target * 0.5)).any()
