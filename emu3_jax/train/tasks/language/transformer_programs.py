"""What is done with a trained transformer, as programs to compile."""

import math
from collections.abc import Sequence

import jax

from emu3_jax import sharding, vocab
from emu3_jax.config import ConfigError
from emu3_jax.generate import scoring
from emu3_jax.generate.decoding import autoregressive
from emu3_jax.train.program import Program


class SampleProgram(Program):
    """Images of 720 x 720 pixels as `emu3_jax.generate` draws them, with guidance: one for each
    share that the mesh makes of a batch, with prompts of up to 128 tokens."""

    PROMPT, SIDE = 128, 720 // 8

    def lower(self, devices: Sequence[jax.Device]) -> jax.stages.Lowered:
        """For a model of the released vocabulary; ConfigError for another."""
        model, released = self.task.config.model, vocab.released()
        if model.vocab_size != released.size:
            raise ConfigError(
                f"--program=sample draws with the released vocabulary of {released.size} ids, "
                f"model.vocab_size is {model.vocab_size}"
            )
        mesh = self.mesh(devices)
        requests = math.prod(mesh.shape[axis] for axis in sharding.mesh_axes("batch"))
        # Rows with their EOL, then EOF, EOI and EOS.
        new = self.SIDE * (self.SIDE + 1) + 3
        sizes = {"requests": requests, "prompt": self.PROMPT, "new": new}
        return autoregressive.lower(model, released, mesh, **sizes)

    def model_flops(self) -> float:
        """Not counted: decoding is bound by memory, not by arithmetic."""
        return 0.0


class EvaluateProgram(Program):
    """Held-out likelihood as `emu3_jax.evaluate` computes it, with weights in the compute type: one
    batch of rows as long as those of training, BATCH of them or as many as the mesh cuts."""

    BATCH = 32

    def lower(self, devices: Sequence[jax.Device]) -> jax.stages.Lowered:
        """For these devices; ValueError where model and rows do not fit their mesh."""
        config = self.task.config
        sizes = {"batch_size": self.BATCH, "row_length": config.data.sequence_length}
        return scoring.lower(config.model, self.mesh(devices), **sizes)

    def model_flops(self) -> float:
        """Not counted: documents fill rows as they come."""
        return 0.0
