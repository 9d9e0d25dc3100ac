"""The vision tokenizer's task: the loss falls, dead codes come back, a mesh changes nothing."""

import collections
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_tasks import vision_task
from tiny_vision_tokenizer import CODES, MODEL, WEIGHTS

from emu3_jax import sharding
from emu3_jax.aot import hlo
from emu3_jax.data import media
from emu3_jax.data.pixels.pixel_batches import PixelConfig, PixelGroup
from emu3_jax.sharding import MeshConfig
from emu3_jax.train.optimizer import OptimizerConfig
from emu3_jax.train.step import abstract_state, make_train_step
from emu3_jax.train.task import TrainState
from emu3_jax.train.tasks.vision import codebook_maintenance
from emu3_jax.train.tasks.vision.codebook_maintenance import USAGE, CodebookConfig, with_codebook
from emu3_jax.train.tasks.vision.vision_objective import DISCRIMINATOR, VisionLossConfig, mean_psnr
from emu3_jax.train.tasks.vision.vision_start import VisionTokenizerStart

KEY = jax.random.key(0)
ONE_DEVICE = sharding.make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])


PLAIN, MAINTENANCE, FRESH = VisionLossConfig(), CodebookConfig(), VisionTokenizerStart()


def _task(loss=PLAIN, steps=100, codebook=MAINTENANCE, model=MODEL, start=FRESH, **counts):
    groups = (
        PixelGroup("stills", "stills", 8, counts.get("stills", 8)),
        PixelGroup("clips", "clips", 8, counts.get("clips", 8), 2),
    )
    return vision_task(model, PixelConfig("unused", groups=groups), loss, steps, codebook, start)


def _batch(kinds=("stills", "clips"), seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"stills": (8, 8, 8, 3), "clips": (8, 2, 8, 8, 3)}
    return {k: rng.uniform(-1, 1, shapes[k]).astype(np.float32) for k in kinds}


def _start(task, optimizer, mesh=None) -> TrainState:
    """A state of random weights: compiling a real initialisation takes longer than the tests."""
    mesh = mesh or ONE_DEVICE
    rng = np.random.default_rng(0)

    def value(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            return np.ones(leaf.shape, leaf.dtype)
        fan_in = math.prod(leaf.shape[:-1])
        spread = {"kernel": 0.5 / math.sqrt(fan_in), "embedding": 0.3}.get(name, 0.0)
        return (spread * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    abstract = abstract_state(task, optimizer, KEY, mesh, ema=True)
    params, model_state = jax.tree_util.tree_map_with_path(
        value, (abstract.params, abstract.model_state)
    )
    state = TrainState(np.int32(0), params, model_state, optimizer.init(params), params)
    return jax.tree.map(lambda x, a: jax.device_put(np.array(x), a.sharding), state, abstract)


def _put(task, mesh, batch):
    return jax.tree.map(jax.device_put, batch, task.batch_shardings(mesh))


REVIVING = _task(
    VisionLossConfig(**WEIGHTS, clips=0.5),
    codebook=CodebookConfig(revive_every=2, revive_below=0.5),
)
SGD = optax.sgd(0.05)


@pytest.fixture(scope="module")
def step():
    """The one step that is compiled for one device; codes are revived in every second."""
    return jax.jit(make_train_step(REVIVING, SGD, key=KEY, ema_decay=0.99))


@pytest.fixture(scope="module")
def two_steps(step):
    """The state after two steps from the random weights, and the metrics of each."""
    state, metrics = _start(REVIVING, SGD), []
    for seed in range(2):
        state, numbers = step(state, _put(REVIVING, ONE_DEVICE, _batch(seed=seed)))
        metrics.append(jax.device_get(numbers))
    return jax.device_get(state), metrics


def test_the_loss_falls(step):
    state, losses = _start(REVIVING, SGD), []
    for _ in range(2):
        state, metrics = step(state, _put(REVIVING, ONE_DEVICE, _batch()))
        losses.append(float(metrics["loss"][0]))
    assert losses[1] < losses[0]


def test_the_objective_is_the_weighted_sum_of_its_terms(two_steps):
    value = {name: float(total) for name, (total, _) in two_steps[1][0].items()}
    expected = sum(
        share * weight * value[f"loss/{kind}_{term}"]
        for kind, share in (("stills", 1.0), ("clips", 0.5))
        for term, weight in WEIGHTS.items()
    )
    assert value["loss"] == pytest.approx(expected, rel=1e-5)
    assert two_steps[1][0]["loss"][1] == 1.0
    assert {"psnr/stills", "psnr/clips", "codebook/perplexity", "codebook/dead"} <= value.keys()


@pytest.mark.parametrize("kind", ["stills", "clips"])
def test_batches_of_one_kind_alone(kind):
    other = {"stills": "clips", "clips": "stills"}[kind]
    task = _task(**{other: 0})
    assert set(task.batch_shardings(ONE_DEVICE)) == {kind}
    assert task.units_per_batch() == {"stills": 8, "clips": 16}[kind]
    abstract = abstract_state(task, SGD, KEY, ONE_DEVICE, ema=False)
    train_step = make_train_step(task, SGD, key=KEY)
    new, metrics = jax.eval_shape(train_step, abstract, _batch((kind,)))
    assert new.params["quantize"]["embedding"].shape == (CODES, MODEL.embed_dim)
    assert f"loss/{kind}_l2" in metrics and f"loss/{other}_l2" not in metrics


@pytest.mark.parametrize("start", ["latents", "kmeans"])
def test_entries_of_random_weights_move_after_the_first_step_and_loaded_ones_stay(start):
    moved = {}
    for begin in ("", "weights", "movqgan"):
        loaded = VisionTokenizerStart(**{begin: "a file"} if begin else {})
        task = _task(codebook=CodebookConfig(start=start, revive_every=0), start=loaded)
        before = _start(task, SGD)
        used = {kind: counts.at[0].set(1) for kind, counts in before.model_state[USAGE].items()}
        before = before.replace(model_state=before.model_state | {USAGE: used})
        after = task.after_update(before, _put(task, ONE_DEVICE, _batch()), KEY)
        tables = [np.asarray(codebook_maintenance.codebook(s.params)) for s in (before, after)]
        moved[begin] = not np.array_equal(*tables)
    assert moved == {"": True, "weights": False, "movqgan": False}


def test_dead_codes_move_onto_latents_in_weights_and_average_and_start_anew(step):
    state = _start(REVIVING, SGD)
    counts = jnp.full((CODES,), 8.0).at[:4].set(0.0)
    far = state.params["quantize"]["embedding"].at[:4].set(100.0)  # never the nearest
    state = state.replace(
        step=jnp.int32(2),
        params=with_codebook(state.params, far),
        ema=with_codebook(state.ema, far),
        model_state=state.model_state | {USAGE: dict.fromkeys(("stills", "clips"), counts)},
    )
    layout = jax.tree.map(lambda x: x.sharding, _start(REVIVING, SGD))
    state = jax.device_put(state, layout)  # or the step would be compiled anew
    batch = _put(REVIVING, ONE_DEVICE, _batch())
    first, _ = step(state, batch)
    assert (np.asarray(first.params["quantize"]["embedding"])[:4] == 100.0).all()  # not yet due
    second, metrics = step(first, batch)
    codes = np.asarray(second.params["quantize"]["embedding"])
    averaged = np.asarray(second.ema["quantize"]["embedding"])
    usage = np.asarray(second.model_state[USAGE]["stills"])
    np.testing.assert_array_equal(averaged[:4], codes[:4])
    assert usage[:4].min() == usage[:4].max() > 1.0  # the mean before: time to be chosen
    assert metrics["codebook/dead"][0] >= 4 / CODES
    variables = {"params": second.params, "batch_stats": second.model_state["batch_stats"]}
    encode = jax.jit(lambda x: REVIVING.model.apply(variables, x).latents)
    latents = np.concatenate(
        [np.asarray(encode(x)).reshape(-1, MODEL.embed_dim) for x in _batch().values()]
    )
    distance = np.abs(codes[:4, None] - latents[None]).max(-1).min(-1)
    assert (distance < 0.1 * latents.std(axis=0).max()).all()


@pytest.mark.parametrize(
    "every, until, step, revived",
    [
        (0, 1.0, 50, False),
        (0, 1.0, 1, True),
        (5, 0.5, 1, True),
        (5, 0.5, 50, True),
        (5, 0.5, 49, False),
        (5, 0.5, 55, False),
    ],
    ids=["turned off", "only at first", "at first", "due", "not due", "settling"],
)
def test_when_codes_are_revived(monkeypatch, every, until, step, revived):
    config = CodebookConfig(revive_every=every, revive_until=until)
    monkeypatch.setattr(codebook_maintenance, "_revive", lambda s, *rest: s.replace(ema=s.ema + 1))
    params = {"quantize": {"embedding": jnp.zeros((4, 2))}}
    state = TrainState(jnp.int32(step - 1), params, {}, (), jnp.zeros(()))
    found = codebook_maintenance.after_update(state, config, 100, lambda s: None, KEY)
    assert bool(found.ema) == revived


@pytest.fixture(scope="module")
def on_eight():
    """The mesh, and the step compiled for it."""
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=4))
    with jax.set_mesh(mesh):
        state = abstract_state(REVIVING, SGD, KEY, mesh, ema=True)
        step = jax.jit(make_train_step(REVIVING, SGD, key=KEY, ema_decay=0.99))
        return mesh, step.lower(state, REVIVING.abstract_batch(mesh)).compile()


def test_eight_devices_give_the_same_loss_weights_and_statistics_as_one(two_steps, on_eight):
    mesh, train_step = on_eight
    state = _start(REVIVING, SGD, mesh)
    for seed in range(2):
        state, metrics = train_step(state, _put(REVIVING, mesh, _batch(seed=seed)))
        expected = two_steps[1][seed]["loss"][0]
        np.testing.assert_allclose(metrics["loss"][0], expected, rtol=1e-5)
    found, expected = jax.device_get(state), two_steps[0]
    # BatchNorm over the 16 positions of one device instead of all 128 would differ in the second
    # digit; float32 sums in another order differ in the sixth.
    flat = zip(*(jax.tree_util.tree_leaves_with_path(x) for x in (found, expected)), strict=True)
    for (path, value), (_, wanted) in flat:
        np.testing.assert_allclose(
            value, wanted, rtol=1e-4, atol=2e-5, err_msg=jax.tree_util.keystr(path)
        )


def test_kernels_lie_in_pieces_and_are_gathered_once_a_step_and_no_frame_is(on_eight):
    mesh, train_step = on_eight
    state = abstract_state(REVIVING, SGD, KEY, mesh, ema=True)
    kernels = [
        leaf
        for leaf in jax.tree.leaves(state.params)
        if leaf.sharding.shard_shape(leaf.shape) != leaf.shape
    ]
    assert len(kernels) > 20
    gathered = collections.Counter()
    for one in hlo.collectives(train_step.as_text()):
        if one.kind == "all-gather":
            gathered[one.shape] += one.times
    latents = (8 * 8 * 8, MODEL.embed_dim)  # a group's, for codebook maintenance
    assert gathered.pop(latents) == 2
    assert gathered == collections.Counter(x.shape for x in kernels)


@pytest.mark.parametrize(
    "data, message",
    [
        (dict(size=9), "size 9 of clips is not a multiple of .* spatial factor 2"),
        (dict(frames=3), "frames 3 of clips is not a multiple of .* temporal factor 2"),
    ],
)
def test_sizes_that_do_not_fit_the_model(data, message):
    model = dataclasses.replace(MODEL, ch_mult=(1, 1))
    group = dataclasses.replace(PixelGroup("clips", "clips", 8, 1, 2), **data)
    config = PixelConfig(root="unused", groups=(group,))
    with pytest.raises(ValueError, match=message):
        vision_task(model, config, PLAIN)


def test_a_batch_that_the_mesh_does_not_divide():
    mesh = sharding.make_mesh(MeshConfig(data=4, fsdp=2))
    with pytest.raises(ValueError, match="data.groups.clips.count=3 is split over .*multiple of 8"):
        _task(clips=3).batches(mesh)


def test_psnr_is_the_mean_over_images_with_a_peak_of_two():
    target = np.zeros((2, 4, 4, 3), np.float32)
    pixels = np.stack([np.full((4, 4, 3), 0.2), np.full((4, 4, 3), 0.02)]).astype(np.float32)
    np.testing.assert_allclose(mean_psnr(pixels, target), (20.0 + 40.0) / 2, rtol=1e-5)
    loud = np.full_like(target, 5.0)
    np.testing.assert_allclose(mean_psnr(loud, target + 1.0), 100 + 10 * np.log10(4), rtol=1e-5)


def test_it_trains_from_files(tmp_path):
    """The batches that the loop will draw have the shapes that the task announces."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(3):
        media.write_png(tmp_path / f"{i}.png", rng.integers(0, 256, (8, 8, 3), np.uint8))
        lines.append(f'{{"id": "i{i}", "image": "{i}.png", "text": "t"}}')
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    config = PixelConfig(str(tmp_path), groups=(PixelGroup("stills", "stills", 8, 8),))
    task = vision_task(MODEL, config, PLAIN)
    mesh = sharding.make_mesh(MeshConfig(data=8, fsdp=1))
    batch = next(task.batches(mesh))
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        "stills": ((8, 8, 8, 3), np.float32)
    }
    assert set(task.batch_shardings(mesh)) == set(batch)


def test_weight_decay_spares_the_discriminator():
    """It would move it before its start, while it gets no gradient."""
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
    optimizer, schedule = _task().optimizer(config, 10)
    params = {name: {"kernel": jnp.ones((2, 2))} for name in ("encoder", DISCRIMINATOR)}
    still = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(still, optimizer.init(params), params, step=0)
    np.testing.assert_allclose(updates["encoder"]["kernel"], -schedule(0) * 0.5, rtol=1e-6)
    np.testing.assert_array_equal(updates[DISCRIMINATOR]["kernel"], 0.0)
