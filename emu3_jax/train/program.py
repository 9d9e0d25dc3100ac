"""Programs for ahead-of-time lowering: the functions that training and commands run."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from emu3_jax import sharding
from emu3_jax.train.step import abstract_state, jitted_train_step
from emu3_jax.train.task import Task


class Program(abc.ABC):
    """A jitted function of a task, with the shapes and shardings of its arguments.

    It can be lowered for devices that are not present (`jax.experimental.topologies`).

    Attributes:
      task: the task, made with read_data=False.
      stacked: whether the program trains a stack of equal layers (`Task.with_layers`).
    """

    stacked = False

    def __init__(self, task: Task):
        self.task = task

    def mesh(self, devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
        """Returns the config's mesh over the devices."""
        return sharding.make_mesh(self.task.config.run.mesh, devices)

    @abc.abstractmethod
    def lower(self, devices: Sequence[jax.Device]) -> jax.stages.Lowered:
        """Lowers the program; ValueError if mesh, model and batch do not fit together."""

    @abc.abstractmethod
    def model_flops(self) -> float:
        """Returns the model FLOPs of one call over all devices; 0 if not counted."""


class TrainProgram(Program):
    """The training step, as `emu3_jax.train` runs it."""

    @property
    def stacked(self) -> bool:
        """Whether `Task.with_layers` can change the number of layers."""
        return self.task.with_layers(1) is not None

    def lower(self, devices: Sequence[jax.Device]) -> jax.stages.Lowered:
        """Lowers the jitted step; with limits of a loss spike if `run.divergence` is on."""
        task, run = self.task, self.task.config.run
        mesh = self.mesh(devices)
        optimizer, _ = task.optimizer(run.optimizer, run.steps)
        key = jax.random.key(run.seed)
        step_key = jax.random.fold_in(key, 1)
        with jax.set_mesh(mesh):
            batch = task.abstract_batch(mesh)
            state = abstract_state(task, optimizer, key, mesh, run.ema_decay > 0)
            step = jitted_train_step(
                task,
                optimizer,
                state,
                mesh,
                accumulation=run.accumulation,
                accumulated_mean=run.accumulated_mean,
                ema_decay=run.ema_decay,
                key=step_key,
            )
            limits = jax.ShapeDtypeStruct((2,), jnp.float32, sharding=sharding.replicated(mesh))
            return step.lower(state, batch, *([limits] if run.divergence.policy != "off" else []))

    def model_flops(self) -> float:
        """Returns the model FLOPs of one update over all devices."""
        return self.task.units_per_batch() * self.task.flops_per_unit()

    def changed(self, **sections: dict[str, Any]) -> "TrainProgram":
        """Returns the program with fields replaced: changed(data=dict(batch_size=8))."""
        config = self.task.config
        new = {n: dataclasses.replace(getattr(config, n), **f) for n, f in sections.items()}
        return self._of(dataclasses.replace(config, **new))

    def with_layers(self, num_layers: int) -> "TrainProgram":
        """Returns the program of `Task.with_layers`; only if `stacked`."""
        return self._of(self.task.with_layers(num_layers))

    def _of(self, config: Any) -> "TrainProgram":
        return TrainProgram(type(self.task)(config, read_data=False))
