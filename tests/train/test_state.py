"""The train step: accumulation, bad numbers, averaged weights, and a state born in its shards."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from toy_task import FEATURES, OUTPUTS, Numbered, ToyTask, assert_same_trees, leaves, poison

from emu3_jax import sharding
from emu3_jax.models.language.transformer import Transformer, TransformerConfig
from emu3_jax.sharding import MeshConfig
from emu3_jax.train.optimizer import OptimizerConfig, make_optimizer
from emu3_jax.train.step import abstract_state, init_state, make_train_step

KEY = jax.random.key(0)
ONE = MeshConfig(fsdp=1)


def _start(task, optimizer, mesh=None, ema=False):
    mesh = mesh or sharding.make_mesh(ONE, jax.devices()[:1])
    return init_state(task, optimizer, KEY, mesh, ema)


def _step(task, optimizer, **options):
    return jax.jit(make_train_step(task, optimizer, key=KEY, **options))


@pytest.mark.parametrize("accumulation", [2, 4, 16])
def test_micro_batches_add_up_to_the_whole_batch(accumulation):
    task, optimizer = ToyTask(), optax.sgd(0.1)
    state, batch = _start(task, optimizer), next(Numbered())
    whole, whole_metrics = _step(task, optimizer)(state, batch)
    parts, metrics = _step(task, optimizer, accumulation=accumulation)(state, batch)
    # Sums of 16 terms of order 10 in another order: at most 16 x 2^-24 x 10 = 1e-5, relative to a
    # weight of order 10 and times the rate of 0.1.
    for name, value in leaves(whole.params).items():
        np.testing.assert_allclose(leaves(parts.params)[name], value, atol=1e-6, err_msg=name)
    for name in ("loss", "loss/plain", "gradient_norm"):
        np.testing.assert_allclose(metrics[name], whole_metrics[name], rtol=3e-6, err_msg=name)
    assert parts.model_state["count"]["rows"] == whole.model_state["count"]["rows"] == 16


def test_the_means_of_micro_batches_are_averaged_whatever_their_weights():
    task, optimizer = ToyTask(), optax.sgd(0.1)
    state, batch = _start(task, optimizer), next(Numbered())
    batch["weight"][::4] = 0.0  # one of four micro-batches has nothing that counts
    options = dict(accumulation=4, accumulated_mean="micro_batches")
    new, metrics = _step(task, optimizer, **options)(state, batch)
    parts = [{name: value[i::4] for name, value in batch.items()} for i in (1, 2, 3)]
    alone = [_step(task, optimizer)(state, part) for part in parts]
    losses = [np.divide(*m["loss"]) for _, m in alone]
    assert metrics["loss"][1] == 3
    np.testing.assert_allclose(np.divide(*metrics["loss"]), np.mean(losses), rtol=1e-6)
    for name, value in leaves(new.params).items():
        expected = np.mean([leaves(s.params)[name] for s, _ in alone], axis=0)
        np.testing.assert_allclose(value, expected, atol=1e-6, err_msg=name)


def test_the_loss_is_the_weighted_mean_and_its_gradient_is_applied():
    task, optimizer = ToyTask(), optax.sgd(0.5)
    state, batch = _start(task, optimizer), next(Numbered())
    new, metrics = _step(task, optimizer)(state, batch)
    kernel, bias = (np.asarray(state.params["dense"][k], np.float64) for k in ("kernel", "bias"))
    error = batch["x"] @ kernel + bias - batch["y"]
    weight = batch["weight"] / batch["weight"].sum()
    loss = (weight * (error**2).mean(-1)).sum()
    np.testing.assert_allclose(np.divide(*metrics["loss"]), loss, rtol=1e-6)
    slope = batch["x"].T @ (error * 2 / OUTPUTS * weight[:, None])
    np.testing.assert_allclose(new.params["dense"]["kernel"], kernel - 0.5 * slope, atol=1e-6)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_bad_step_changes_the_step_number_alone(accumulation):
    task = ToyTask()
    optimizer, _ = make_optimizer(OptimizerConfig(), 10)
    step = _step(task, optimizer, accumulation=accumulation, ema_decay=0.9)
    before, _ = step(_start(task, optimizer, ema=True), next(Numbered()))
    after, metrics = step(before, poison(next(Numbered())))
    assert int(after.step) == 2
    assert_same_trees(after.replace(step=before.step), before)
    assert metrics["nonfinite"][0] == 1.0
    # It counts in no mean.
    assert {
        n: (s, c) for n, (s, c) in metrics.items() if c and n not in ("nonfinite", "empty")
    } == {}
    good, metrics = step(after, next(Numbered()))
    assert metrics["nonfinite"][0] == 0.0 and np.isfinite(leaves(good.params)[
        "['dense']['kernel']"]).all()  # fmt: skip


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_batch_in_which_nothing_counts_changes_the_step_number_alone(accumulation):
    task = ToyTask()
    optimizer, _ = make_optimizer(OptimizerConfig(), 10)
    step = _step(task, optimizer, accumulation=accumulation, ema_decay=0.9)
    before, metrics = step(_start(task, optimizer, ema=True), next(Numbered()))
    assert metrics["empty"][0] == 0.0
    batch = next(Numbered())
    after, metrics = step(before, batch | {"weight": np.zeros_like(batch["weight"])})
    assert_same_trees(after.replace(step=before.step), before)
    assert metrics["empty"][0] == 1.0 and metrics["nonfinite"][0] == 0.0
    assert int(after.step) == 2 and metrics["loss"][1] == 0.0


@pytest.mark.parametrize("bad", ["poison", "weightless"])
def test_the_rate_after_a_step_without_update_is_the_schedule_s(bad):
    """Adam's first update is the rate, whatever the gradient (b1 = b2 = 0, no decay): that of
    step 3 where steps 1 and 2 changed nothing, as it would be without them."""
    config = OptimizerConfig(
        learning_rate=0.1, warmup_steps=5, b1=0.0, b2=0.0, eps=1e-30, weight_decay=0.0, clip_norm=0
    )
    optimizer, schedule = make_optimizer(config, 10)
    step, batch = _step(ToyTask(), optimizer), next(Numbered())
    other = poison(batch) if bad == "poison" else batch | {"weight": 0 * batch["weight"]}
    state = _start(ToyTask(), optimizer)
    before = leaves(state.params)
    for data in (other, other, batch):
        state, _ = step(state, data)
    for name, value in leaves(state.params).items():
        # A weight of order 0.3 and a difference of 0.06 in float32.
        np.testing.assert_allclose(
            np.abs(value - before[name]), float(schedule(2)), rtol=2e-6, err_msg=name
        )


def test_averaged_weights_follow_quickly_at_first():
    task, optimizer = ToyTask(), optax.sgd(0.1)
    state, batches = _start(task, optimizer, ema=True), Numbered()
    step = _step(task, optimizer, ema_decay=0.3)
    expected = np.asarray(state.params["dense"]["kernel"], np.float64)
    for count in range(5):
        state, _ = step(state, next(batches))
        decay = min(0.3, (1 + count) / (10 + count))
        kernel = np.asarray(state.params["dense"]["kernel"], np.float64)
        expected = decay * expected + (1 - decay) * kernel
        np.testing.assert_allclose(state.ema["dense"]["kernel"], expected, atol=1e-6)
    assert state.evaluation_params() is state.ema


def test_averaged_weights_are_float32_whatever_the_weights_are():
    class Half(ToyTask):
        def init(self, key):
            return jax.tree.map(lambda x: x.astype(jnp.bfloat16), super().init(key))

        def loss(self, params, model_state, batch, key, step):
            loss = super().loss(params, model_state, batch, key, step)
            return loss._replace(model_state=model_state)

    task, optimizer = Half(), optax.sgd(0.1)
    state = _start(task, optimizer, ema=True)
    new, _ = _step(task, optimizer, ema_decay=0.9)(state, next(Numbered()))
    types = jax.tree.map(lambda x: x.dtype, (state, new))
    assert types[0] == types[1]
    assert new.ema["dense"]["kernel"].dtype == jnp.float32


class Language:
    """As much of a task as creating its state needs."""

    def init(self, key):
        config = TransformerConfig(64, 16, 32, 2, 4, 2, 4, vocab_multiple=64)
        return Transformer(config).init(key, jnp.zeros((1, 4), jnp.int32))


def test_the_state_is_created_in_its_shards():
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    optimizer, _ = make_optimizer(OptimizerConfig(), 10)
    with jax.set_mesh(mesh):
        state = init_state(Language(), optimizer, KEY, mesh, ema=True)
        abstract = abstract_state(Language(), optimizer, KEY, mesh, ema=True)
    kernels = {
        "lm_head": P("fsdp", "tensor"),
        "embed": P("tensor", "fsdp"),
    }
    adam = next(s for s in jax.tree.leaves(state.opt_state, is_leaf=_is_adam) if _is_adam(s))
    for tree in (state.params, adam.mu, adam.nu, state.ema):
        for name, spec in kernels.items():
            (array,) = tree[name].values()
            expected = jax.NamedSharding(mesh, spec)
            assert array.sharding.is_equivalent_to(expected, array.ndim), (name, array.sharding)
            pieces = [shard.data.size for shard in array.addressable_shards]
            assert pieces == [array.size // 4] * 8
    for path, array in jax.tree_util.tree_flatten_with_path(state.params)[0]:
        if array.ndim > 2 or path[-1].key == "kernel":
            assert array.addressable_shards[0].data.size < array.size, path
    same = jax.tree.map(
        lambda a, b: (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding),
        nn.unbox(state), abstract,
    )  # fmt: skip
    assert all(jax.tree.leaves(same))


def _is_adam(node):
    return hasattr(node, "mu") and hasattr(node, "nu")


def test_a_state_that_a_mesh_does_not_divide_is_named():
    mesh = sharding.make_mesh(MeshConfig(fsdp=1, tensor=8))
    with pytest.raises(ValueError, match=r"kernel.*\(kv_heads\)=2 .*tensor=8"):
        init_state(Language(), optax.sgd(0.1), KEY, mesh, ema=False)
    assert FEATURES % 8 == 0  # the toy's arrays divide, so no test above depends on padding


@pytest.mark.parametrize("accumulation", [2, 4])
def test_micro_batches_draw_their_dropout_apart(accumulation):
    """The same rows in every micro-batch: what is left of a difference is the key."""

    class Drawing(ToyTask):
        def loss(self, params, model_state, batch, key, step):
            loss = super().loss(params, model_state, batch, key, step)
            draw, one = jax.random.uniform(key), jnp.ones(())
            return loss._replace(metrics={"draw": (draw, one), "square": (draw**2, one)})

    task, optimizer = Drawing(), optax.sgd(0.1)
    state = _start(task, optimizer)
    seen = []
    for number in (0, 1):
        state = state.replace(step=jnp.full_like(state.step, number))
        _, metrics = _step(task, optimizer, accumulation=accumulation)(state, next(Numbered()))
        mean, square = (float(np.divide(*metrics[name])) for name in ("draw", "square"))
        assert square - mean**2 > 1e-3  # the variance of draws; equal ones have none
        seen.append(mean)
    assert abs(seen[0] - seen[1]) > 1e-3  # and each step has its own
