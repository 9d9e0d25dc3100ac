"""Programs of a trained transformer for ahead-of-time lowering: sampling and evaluation."""

import math
from collections.abc import Sequence

import jax

from emu3_jax import sharding, vocab
from emu3_jax.config import ConfigError
from emu3_jax.generate import scoring
from emu3_jax.generate.decoding import lowering, scheduling
from emu3_jax.generate.decoding.decoders import registry
from emu3_jax.generate.decoding.decoders.sequential import Sequential
from emu3_jax.generate.decoding.decoders.zipar import NEVER, Zipar
from emu3_jax.models.language.transformer import (
    Transformer,
    TransformerConfig,
    count_parameters,
)
from emu3_jax.sequence import allowed_after_img
from emu3_jax.train.program import Program
from emu3_jax.train.task import Task

QUANTIZED = ("weights", "cache")


class SampleProgram(Program):
    """Draws images of 720 x 720 pixels with guidance, as `emu3_jax.generate` does.

    The batch is one image per shard of the batch axis; prompts have up to 128 tokens.

    Attributes:
      decoder: how tokens are decoded.
      quantized: what is int8: "weights", "cache".
      mask: int32, the constraint mask of an image.
    """

    PROMPT, SIDE, BRANCHES = 128, 720 // 8, 2

    def __init__(
        self,
        task: Task,
        decoder: str = "sequential",
        window: int | None = None,
        quantize: Sequence[str] = (),
    ):
        """ConfigError for a decoder, a window or a word in `quantize` that there is not."""
        super().__init__(task)
        if unknown := [name for name in quantize if name not in QUANTIZED]:
            raise ConfigError(f"{' and '.join(QUANTIZED)} can be int8, not {unknown[0]!r}")
        self.quantized = tuple(quantize)
        self.mask = allowed_after_img(vocab.released(), "image", 1, self.SIDE, self.SIDE)
        try:
            self.decoder = registry.make(decoder, window).fitted([self.mask])
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def lower(self, devices: Sequence[jax.Device], live: int | None = None) -> jax.stages.Lowered:
        """Lowers the decoding loop; ConfigError if the vocabulary is not the released one.

        `live` slots of the cache are read in a pass; None: all that are allocated.
        """
        model, released, mesh = self._model(), vocab.released(), self.mesh(devices)
        sizes = {"requests": self._requests(mesh), "prompt": self.PROMPT, "mask": self.mask}
        return lowering.lower(
            model, released, mesh, self.decoder, live=live, quantized=self.quantized, **sizes
        )

    def _model(self) -> TransformerConfig:
        model, released = self.task.config.model, vocab.released()
        if model.vocab_size != released.size:
            raise ConfigError(
                f"--program=sample draws with the released vocabulary of {released.size} ids, "
                f"model.vocab_size is {model.vocab_size}"
            )
        return model

    def _requests(self, mesh) -> int:
        return math.prod(mesh.shape[axis] for axis in sharding.mesh_axes("batch"))

    def live_slots(self) -> list[int]:
        """The slots that are read for each token of an image."""
        slots = lowering.slots_of(self.decoder, self.PROMPT, self.mask)
        return [scheduling.live_slots(written, slots) for written in self._written()]

    def _written(self) -> range:
        """Tokens of the cache before each token of an image is drawn."""
        return range(self.PROMPT - 1, self.PROMPT - 1 + len(self.mask))

    def passes(self) -> int | None:
        """Forward passes of an image; None if chance decides."""
        if isinstance(self.decoder, Sequential):
            return len(self.mask)
        if type(self.decoder) is Zipar:  # the adaptive one waits by chance
            pass_N = self.decoder.schedule(self.mask, len(self.mask)).pass_BN
            return int(pass_N[pass_N < NEVER].max()) + 1
        return None

    def floor_bytes(self, devices: Sequence[jax.Device]) -> float:
        """The least that a device reads in a pass, mean over an image.

        Once each: the layers, the columns of the head that are visual, and the cache as far as it
        is written. The rows of the embedding do not count.
        """
        config, mesh = self._model(), self.mesh(devices)
        with jax.set_mesh(mesh):
            params = lowering.abstract_params(
                Transformer(config), mesh, "weights" in self.quantized
            )
        read = {name: x for name, x in params.items() if name not in ("embed", "lm_head")}
        head = params["lm_head"]["kernel"]
        codes = vocab.released().codebook_size / head.shape[1]
        rows = self.BRANCHES * self._requests(mesh)
        slot = lowering.abstract_cache(config, mesh, rows, 1, "cache" in self.quantized)
        written = sum(self._written()) / len(self._written())
        return _bytes_here(read) + codes * _bytes_here(head) + written * _bytes_here(slot)

    def matmul_flops(self, devices: Sequence[jax.Device]) -> float:
        """FLOPs of a pass on a device, of the products with weights alone."""
        config, mesh = self._model(), self.mesh(devices)
        tokens = self.BRANCHES * self._requests(mesh) * self.decoder.width
        tables = 2 * config.vocab_size - vocab.released().codebook_size
        weights = count_parameters(config) - tables * config.hidden_size
        return 2.0 * tokens * weights / len(devices)

    def model_flops(self) -> float:
        """Returns 0: not counted, since decoding is bound by memory, not by arithmetic."""
        return 0.0


def _bytes_here(arrays) -> int:
    """Bytes of abstract arrays on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(arrays)
    )


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
