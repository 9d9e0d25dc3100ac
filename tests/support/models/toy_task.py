"""The smallest task that the training loop can run: a linear regression on a numbered stream."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from emu3_jax import sharding
from emu3_jax.data.batches import Batches
from emu3_jax.train.loop import Callback
from emu3_jax.train.optimizer import OptimizerConfig
from emu3_jax.train.run.checkpoint import CheckpointConfig
from emu3_jax.train.run.metrics import LogConfig, read_metrics
from emu3_jax.train.run_config import RunConfig
from emu3_jax.train.task import Loss, Task

ROWS, FEATURES, OUTPUTS = 16, 8, 8


class Numbered(Batches):
    """Batch n depends on n only; its position can be saved."""

    def __init__(self, changes=None):
        self.number, self.changes = 0, changes or {}

    def __next__(self):
        self.number += 1
        return self.changes.get(self.number, lambda b: b)(self.at(self.number))

    def at(self, number):
        """The batch of a step, unchanged."""
        rng = np.random.default_rng(number - 1)
        x = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
        y = x @ np.eye(FEATURES, OUTPUTS, dtype=np.float32) + 0.1
        return {"x": x, "y": y, "weight": rng.choice([0.5, 1.0, 2.0], ROWS).astype(np.float32)}

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]


class ToyTask(Task):
    """Weighted squared error; a "count" collection stands for BatchNorm statistics.

    `changes` maps the number of a step to a function that changes its batch.
    """

    unit = "rows"

    def __init__(self, changes=None, outputs=OUTPUTS, noise=0.0, start=None):
        self.changes, self.outputs, self.noise, self.start = changes, outputs, noise, start

    def init(self, key):
        kernel = nn.with_logical_partitioning(nn.initializers.normal(0.1), ("embed", "mlp"))
        params = {"dense": {"kernel": kernel(key, (FEATURES, self.outputs))}}
        params["dense"]["bias"] = jnp.zeros((self.outputs,))
        return {"params": params, "count": {"rows": jnp.zeros(())}}

    def initial_weights(self):
        return self.start

    def loss(self, params, model_state, batch, key, step):
        noise = self.noise * jax.random.normal(key, batch["y"].shape)
        error = batch["x"] @ params["dense"]["kernel"] + params["dense"]["bias"] - batch["y"]
        each = jnp.mean(jnp.square(error + noise), axis=-1)
        weight = jnp.sum(batch["weight"])
        total = jnp.sum(each * batch["weight"])
        metrics = {"loss/plain": (jnp.sum(each), jnp.asarray(each.size, jnp.float32))}
        rows = model_state["count"]["rows"] + batch["x"].shape[0]
        return Loss(total, weight, metrics, {"count": {"rows": rows}})

    def batches(self, mesh):
        return Numbered(self.changes)

    def abstract_batch(self, mesh):
        here = jax.NamedSharding(mesh, sharding.partition_spec("batch"))
        return {
            name: jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=here)
            for name, rows in next(Numbered()).items()
        }

    def units_per_batch(self):
        return ROWS

    def trained_model(self, variables, label):
        raise AssertionError("nothing evaluates it")

    def export(self, folder, variables, options):
        raise AssertionError("nothing exports it")


def poison(batch):
    """A batch whose loss is NaN."""
    return batch | {"y": np.full_like(batch["y"], np.nan)}


def run_config(steps=20, every=5, keep=2, log_every=1, **changes) -> RunConfig:
    """A short run on all devices, logging every step, without TensorBoard."""
    settings = dict(
        steps=steps,
        optimizer=OptimizerConfig(learning_rate=0.05, warmup_steps=2),
        checkpoint=CheckpointConfig(every=every, keep=keep),
        log=LogConfig(every=log_every, tensorboard=False),
    )
    return RunConfig(**(settings | changes))


def leaves(tree) -> dict[str, np.ndarray]:
    """Path → host copy of every array."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def assert_same_trees(found, expected):
    """Asserts equality bit for bit."""
    found, expected = leaves(found), leaves(expected)
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


class At(Callback):
    """A callback that does something after one step."""

    every = 1

    def __init__(self, step, action):
        self.step, self.action = step, action

    def __call__(self, step, state, writer):
        if step == self.step:
            self.action()
        return {}


def losses(workdir):
    """Step → the losses that were logged."""
    return {row["step"]: (row["loss"], row["loss/plain"]) for row in read_metrics(workdir)}


def checkpoint_names(workdir):
    """The content of the checkpoint folder."""
    return {child.name for child in (workdir / "checkpoints").iterdir()}
