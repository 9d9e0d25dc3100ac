"""Pretraining: weighted next-token prediction over packed documents of every modality."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from emu3_jax import sharding
from emu3_jax.data.mixture import vision_tokenizer_of
from emu3_jax.data.packing import FIELDS
from emu3_jax.data.pipeline import DataConfig, make_iterator
from emu3_jax.interop.bundle import Language
from emu3_jax.models import zigzag
from emu3_jax.models.attention_kernels import choice
from emu3_jax.models.cross_entropy import chunked_cross_entropy
from emu3_jax.models.transformer import Transformer, TransformerConfig, check_mesh
from emu3_jax.sequence import Grammar, TokenClass
from emu3_jax.train.optimizer import OptimizerConfig, make_optimizer
from emu3_jax.train.state import Loss, TrainState

# The classes of predicted tokens whose losses are reported apart, under these names.
REPORTED = {
    "text": TokenClass.TEXT,
    "image": TokenClass.IMAGE,
    "video": TokenClass.VIDEO,
    "structure": TokenClass.STRUCTURE,
}


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Of the cross-entropy.

    The weights per token class (0.5 on vision tokens, paper section 2.4) belong to the data: they
    arrive with each batch.

    Attributes:
      chunk_tokens: positions whose logits exist at once on one device.
      z_loss: coefficient of log(Z)²; the paper mentions none.
      unroll: write the loop over chunks out, for a compiler that then sees more of it.
    """

    chunk_tokens: int = 512
    z_loss: float = 0.0
    unroll: bool = False


class PretrainTask:
    """Trains a Transformer on batches of packed rows; see data.pipeline for the arrays.

    Without a grammar the task can be compiled, which reads no data, but not trained.
    """

    unit, note = "tokens", ""

    def __init__(
        self, model: TransformerConfig, loss: LossConfig, data: DataConfig, grammar: Grammar | None
    ):
        self.config, self.loss_config, self.data, self.grammar = model, loss, data, grammar
        if grammar is not None and model.vocab_size != grammar.vocab.size:
            raise ValueError(
                f"model.vocab_size is {model.vocab_size}, the data's vocabulary has "
                f"{grammar.vocab.size} ids"
            )
        self.model = Transformer(model)

    def language(self) -> Language:
        """Vocabulary, grammar and limits, which a run directory keeps beside its checkpoints."""
        fingerprint = vision_tokenizer_of(self.data.mixture)
        return Language(
            self.grammar.vocab, self.grammar, fingerprint or None, self.data.sequence_length
        )

    def init(self, key: jax.Array) -> Any:
        """See Task."""
        tokens = jnp.zeros((1, 1), jnp.int32)  # one token fits every mesh
        return self.model.init(key, tokens)

    def optimizer(
        self, config: OptimizerConfig, steps: int
    ) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """See Task."""
        return make_optimizer(config, steps)

    def loss(
        self, params: Any, model_state: Any, batch: dict, key: jax.Array, step: jax.Array
    ) -> Loss:
        """See Task. The weight is the sum of token weights."""
        del step
        x_BSD = self.model.apply(
            {"params": params},
            batch["inputs"],
            batch["positions"],
            batch["segment_ids"],
            deterministic=self.config.dropout == self.config.probability_dropout == 0.0,
            method="hidden",
            rngs={"dropout": key},
        )
        result = chunked_cross_entropy(
            x_BSD,
            params["lm_head"]["kernel"],
            batch["targets"],
            batch["weights"],
            vocab_size=self.config.vocab_size,
            chunk_tokens=self.loss_config.chunk_tokens,
            z_loss=self.loss_config.z_loss,
            unroll=self.loss_config.unroll,
        )
        metrics = self._metrics(result.nll, batch)
        return Loss(result.total, result.weight, metrics, model_state)

    def _metrics(self, nll_BS: jax.Array, batch: dict) -> dict:
        """Mean nats per predicted token, by class and by source; tokens of weight 0 count not."""

        def pair(mask):
            mask = mask & (batch["weights"] > 0)
            return jnp.sum(nll_BS * mask), jnp.sum(mask.astype(jnp.float32))

        metrics = {f"loss/{n}": pair(batch["classes"] == c) for n, c in REPORTED.items()}
        for index, name in enumerate(self.data.source_names()):
            metrics[f"loss/source/{name}"] = pair(batch["sources"] == index)
        filled = jnp.sum((batch["segment_ids"] > 0).astype(jnp.float32))
        size = jnp.asarray(batch["segment_ids"].size, jnp.float32)
        return metrics | {"data/filled": (filled, size)}

    def gradient_parts(self, gradients: Any) -> dict:
        """None."""
        del gradients
        return {}

    def after_update(self, state: TrainState, batch: dict, key: jax.Array) -> TrainState:
        """Nothing to do."""
        del batch, key
        return state

    def abstract_batch(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """See Task. The arrays are those of `data.pipeline.BatchIterator`."""
        check_mesh(self.config, mesh)
        machine = mesh.devices.flat[0].platform
        choice.check_mesh(self.config.attention, machine, mesh.shape["context"])
        sharding.check_divides(mesh, "batch", "data.batch_size", self.data.batch_size)
        zigzag.check_length(mesh, "data.sequence_length", self.data.sequence_length)
        here = self.batch_shardings(mesh)
        shape = (self.data.batch_size, self.data.sequence_length)
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=here)
            for name, (dtype, _) in FIELDS.items()
        }

    def batches(self, mesh: Mesh):
        """See Task. Each process reads only its own rows of the global batch."""
        self.abstract_batch(mesh)  # refuses a mesh that does not fit
        mine = sharding.rows_here(mesh, self.data.batch_size)
        return make_iterator(self.data, self.grammar, rows=mine)

    def batch_shardings(self, mesh: Mesh) -> Any:
        """See Task: one sharding for all arrays of the batch."""
        return sharding.batch_sharding(mesh)

    def tokens_per_batch(self) -> int:
        """Positions in one batch, padding included."""
        return self.data.batch_size * self.data.sequence_length

    def flops_per_unit(self) -> float:
        """Model FLOPs per token: 6 a matmul parameter, and the causal half of attention."""
        c = self.config
        layer = c.hidden_size * c.head_dim * 2 * (c.num_heads + c.num_kv_heads)
        layer += 3 * c.hidden_size * c.intermediate_size
        matmul = c.num_layers * layer + c.hidden_size * c.vocab_size
        attention = self.data.sequence_length * c.num_heads * c.head_dim * c.num_layers
        return 6.0 * (matmul + attention)
