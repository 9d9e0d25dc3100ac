"""The programs that can be compiled, from a config; the code is that which runs them."""

import dataclasses
import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from emu3_jax import sharding, vocab
from emu3_jax.aot.topology import Machine
from emu3_jax.config import ConfigError, to_dataclass
from emu3_jax.data.pixels import PixelGroup
from emu3_jax.generate import autoregressive
from emu3_jax.tokenize.encoder import encode_batch, mesh_of
from emu3_jax.train import model_flops, tasks
from emu3_jax.train.loop import RunConfig
from emu3_jax.train.pretrain import PretrainTask
from emu3_jax.train.state import Task, abstract_state, jitted_train_step


class TrainProgram(NamedTuple):
    """A config's update as `emu3_jax.train` runs it.

    Attributes:
      task: what is trained.
      run: how.
    """

    task: Task
    run: RunConfig

    @classmethod
    def of(cls, config) -> "TrainProgram":
        """From a config file's ConfigDict; its data need not exist, see `tasks.make_task`."""
        run = to_dataclass(RunConfig, config.run, "run")
        return cls(tasks.make_task(config, run, read_data=False), run)

    def lower(self, machine: Machine) -> jax.stages.Lowered:
        """For these devices; ValueError where mesh, model and batch do not fit together."""
        task, run = self.task, self.run
        mesh = self.mesh(machine)
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
                ema_decay=run.ema_decay,
                key=step_key,
            )
            limits = jax.ShapeDtypeStruct((2,), jnp.float32, sharding=sharding.replicated(mesh))
            return step.lower(state, batch, *([limits] if run.divergence.policy != "off" else []))

    def model_flops(self) -> float:
        """Of one update over all devices."""
        return self.task.tokens_per_batch() * self.task.flops_per_unit()

    def mesh(self, machine: Machine) -> jax.sharding.Mesh:
        """The config's mesh over the machine's devices."""
        return sharding.make_mesh(self.run.mesh, machine.devices)

    @property
    def is_transformer(self) -> bool:
        """Whether it is layers of one kind that are trained, on rows of tokens."""
        return isinstance(self.task, PretrainTask)

    def changed(self, *, model=None, loss=None, data=None) -> "TrainProgram":
        """The same with other fields of these sections, each a dict."""
        task = self.task
        sections = (
            dataclasses.replace(old, **(new or {}))
            for old, new in ((task.config, model), (task.loss_config, loss), (task.data, data))
        )
        return self._replace(task=PretrainTask(*sections, task.grammar))

    def unrolled(self, num_layers: int) -> "TrainProgram":
        """So many layers and one micro-batch, without any loop."""
        program = self.changed(
            model={"num_layers": num_layers, "scan_layers": False},
            loss={"unroll": True},
            data={"batch_size": self.task.data.batch_size // self.run.accumulation},
        )
        return program._replace(run=dataclasses.replace(self.run, accumulation=1))


class TokenizeProgram(NamedTuple):
    """Pixels to codes as `emu3_jax.tokenize` runs it, by the config of a vision tokenizer: one
    batch of its clips, or of its stills where it has no clips."""

    task: Task
    is_transformer = False

    @classmethod
    def of(cls, config) -> "TokenizeProgram":
        """From a config with task=vision_tokenizer."""
        if config.get("task") != "vision_tokenizer":
            raise ConfigError("--program=tokenize needs a config with task=vision_tokenizer")
        return cls(TrainProgram.of(config).task)

    def mesh(self, machine: Machine) -> jax.sharding.Mesh:
        """All devices, each with its share of the batch."""
        return mesh_of(machine.devices)

    def lower(self, machine: Machine) -> jax.stages.Lowered:
        """For these devices."""
        mesh = self.mesh(machine)
        pixels = self.task.abstract_batch(mesh)[self._group.name]
        everywhere = sharding.replicated(mesh)
        variables = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
            self._variables(),
        )
        with jax.set_mesh(mesh):
            return encode_batch.lower(self.task.model, variables, pixels)

    def model_flops(self) -> float:
        """Of one batch over all devices."""
        pixels = jax.ShapeDtypeStruct(self._group.shape, jnp.float32)
        encode = functools.partial(encode_batch, self.task.model)
        return model_flops.of_call(encode, self._variables(), pixels)

    @property
    def _group(self) -> PixelGroup:
        groups = self.task.data.active
        return next((group for group in groups if group.kind != "stills"), groups[0])

    def _variables(self):
        variables = nn.unbox(jax.eval_shape(self.task.init, jax.random.key(0)))
        return {name: variables[name] for name in ("params", "batch_stats")}


class SampleProgram(NamedTuple):
    """Drawing pictures of 720 x 720 pixels as `emu3_jax.generate` runs it, with guidance: one for
    each share that the mesh makes of a batch, with prompts of up to 128 tokens."""

    task: Task
    run: RunConfig
    is_transformer = False

    PROMPT, SIDE = 128, 720 // 8

    @classmethod
    def of(cls, config) -> "SampleProgram":
        """From a config with task=pretrain and the released vocabulary."""
        if config.get("task") != "pretrain":
            raise ConfigError("--program=sample needs a config with task=pretrain")
        program = cls(*TrainProgram.of(config))
        if program.task.config.vocab_size != vocab.released().size:
            raise ConfigError(
                f"--program=sample draws with the released vocabulary of {vocab.released().size} "
                f"ids, model.vocab_size is {program.task.config.vocab_size}"
            )
        return program

    def mesh(self, machine: Machine) -> jax.sharding.Mesh:
        """The config's mesh over the machine's devices."""
        return sharding.make_mesh(self.run.mesh, machine.devices)

    def lower(self, machine: Machine) -> jax.stages.Lowered:
        """For these devices."""
        mesh = self.mesh(machine)
        requests = math.prod(mesh.shape[axis] for axis in sharding.mesh_axes("batch"))
        # Rows with their EOL, then EOF, EOI and EOS.
        new = self.SIDE * (self.SIDE + 1) + 3
        model, words = self.task.config, vocab.released()
        sizes = {"requests": requests, "prompt": self.PROMPT, "new": new}
        return autoregressive.lower(model, words, mesh, **sizes)

    def model_flops(self) -> float:
        """Not counted: decoding is bound by memory, not by arithmetic."""
        return 0.0


PROGRAMS = {"train": TrainProgram, "tokenize": TokenizeProgram, "sample": SampleProgram}
