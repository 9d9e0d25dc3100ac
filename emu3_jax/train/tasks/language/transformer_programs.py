"""Programs of a trained transformer for ahead-of-time lowering: sampling and evaluation."""

import math
from collections.abc import Sequence

import jax

from emu3_jax import sharding, vocab
from emu3_jax.config import ConfigError
from emu3_jax.generate import scoring
from emu3_jax.generate.decoding import lowering
from emu3_jax.generate.decoding.decoders import registry
from emu3_jax.sequence import allowed_after_img
from emu3_jax.train.program import Program


class SampleProgram(Program):
    """Draws images of 720 x 720 pixels with guidance, as `emu3_jax.generate` does.

    The batch is one image per shard of the batch axis; prompts have up to 128 tokens.
    """

    PROMPT, SIDE = 128, 720 // 8

    def lower(self, devices: Sequence[jax.Device]) -> jax.stages.Lowered:
        """Lowers the decoding loop; ConfigError if the vocabulary is not the released one."""
        model, released = self.task.config.model, vocab.released()
        if model.vocab_size != released.size:
            raise ConfigError(
                f"--program=sample draws with the released vocabulary of {released.size} ids, "
                f"model.vocab_size is {model.vocab_size}"
            )
        mesh = self.mesh(devices)
        requests = math.prod(mesh.shape[axis] for axis in sharding.mesh_axes("batch"))
        mask = allowed_after_img(released, "image", 1, self.SIDE, self.SIDE)
        sizes = {"requests": requests, "prompt": self.PROMPT, "mask": mask}
        return lowering.lower(model, released, mesh, registry.make("sequential"), **sizes)

    def model_flops(self) -> float:
        """Returns 0: not counted, since decoding is bound by memory, not by arithmetic."""
        return 0.0


class EvaluateProgram(Program):
    """Scores one batch of held-out rows, as the evaluator `likelihood` does.

    Rows are as long as in training: BATCH of them, rounded up to a multiple of the mesh's shards.
    Weights are in the compute dtype.
    """

    BATCH = 32

    def lower(self, devices: Sequence[jax.Device]) -> jax.stages.Lowered:
        """Lowers the scoring of one batch; ValueError if model and rows do not fit the mesh."""
        config = self.task.config
        sizes = {"batch_size": self.BATCH, "row_length": config.data.sequence_length}
        return scoring.lower(config.model, self.mesh(devices), **sizes)

    def model_flops(self) -> float:
        """Returns 0: not counted, since documents fill rows to different lengths."""
        return 0.0
