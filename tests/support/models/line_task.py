"""A whole task outside the package: a line is fitted, on a frozen base.

Configs name it by its import path, "line_task:LineTask".
"""

import dataclasses
import json
import pathlib
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from toy_task import FEATURES, Numbered

from emu3_jax import sharding
from emu3_jax.evaluate.evaluator import Evaluator, Result
from emu3_jax.train.run_config import RunConfig
from emu3_jax.train.task import Loss, Task


@dataclasses.dataclass(frozen=True)
class LineConfig:
    """`base` is a JSON file with the frozen part of the kernel."""

    run: RunConfig
    base: str = ""
    slope: float = 0.1
    evaluation: tuple[dict, ...] = ()
    task: str = "line_task:LineTask"


class LineTask(Task):
    """Trains an adapter; the base beside it is neither trained nor stored in checkpoints."""

    Config = LineConfig
    unit = "rows"
    kind = "line"
    unsaved = ("base",)

    def __init__(self, config, read_data=True):
        self.config = config

    def init(self, key):
        kernel = nn.with_logical_partitioning(
            nn.initializers.normal(self.config.slope), ("embed", "mlp")
        )
        shape = (FEATURES, FEATURES)
        return {"params": {"adapter": kernel(key, shape)}, "base": {"kernel": kernel(key, shape)}}

    def initial_weights(self):
        if not self.config.base:
            return None
        base = np.array(json.loads(pathlib.Path(self.config.base).read_text()), np.float32)
        return lambda variables: {**variables, "base": {"kernel": base}}

    def loss(self, params, model_state, batch, key, step):
        kernel = params["adapter"] + model_state["base"]["kernel"]
        each = jnp.mean(jnp.square(batch["x"] @ kernel - batch["y"]), axis=-1)
        return Loss(jnp.sum(each), jnp.asarray(each.size, jnp.float32), {}, model_state)

    def batches(self, mesh):
        return Numbered()

    def abstract_batch(self, mesh):
        here = jax.NamedSharding(mesh, sharding.partition_spec("batch"))
        return {
            name: jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=here)
            for name, rows in next(Numbered()).items()
        }

    def units_per_batch(self):
        return 16

    def save_beside(self, run_directory):
        pathlib.Path(run_directory, "line.json").write_text("{}")

    def model_variables(self, parts):
        return {"kernel": parts["params"]["adapter"] + parts["base"]["kernel"]}

    def trained_model(self, variables, label):
        return variables["kernel"]

    def export(self, folder, variables, options):
        np.save(pathlib.Path(folder, "line.npy"), np.asarray(variables["kernel"]))


def write_config(folder: pathlib.Path, **changes) -> pathlib.Path:
    """A config file of the task, and its base; `changes` are keys with dots in them."""
    base = np.arange(FEATURES**2).reshape(FEATURES, FEATURES) / 100
    (folder / "base.json").write_text(json.dumps(base.tolist()))
    path = folder / "line_config.py"
    path.write_text(f"""
from ml_collections import ConfigDict
def get_config(arg=""):
    config = ConfigDict(dict(
        task="line_task:LineTask", base={str(folder / "base.json")!r},
        run=dict(steps=6, mesh=dict(data=1, fsdp=1), checkpoint=dict(every=2),
                 optimizer=dict(schedule="constant", learning_rate=0.01),
                 log=dict(every=1, tensorboard=False)),
        evaluation=(dict(evaluator="line_task:Kernel", every=3),),
    ))
    config.update_from_flattened_dict({changes!r})
    return config
""")
    return path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel(Evaluator):
    """The sum of a line's kernel."""

    measures: ClassVar[str] = "line"
    name: str = "kernel"

    def run(self, subject):
        return Result({"sum": float(np.sum(subject.models["line"]))})
