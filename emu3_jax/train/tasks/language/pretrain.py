"""Pretraining: weighted next-token prediction over packed documents of every modality."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from emu3_jax import sharding, shipped
from emu3_jax.config import to_dataclass
from emu3_jax.data.tokens.mixture import media_rules, vision_tokenizer_of
from emu3_jax.data.tokens.packing import FIELDS
from emu3_jax.data.tokens.pipeline import BatchIterator, DataConfig, make_iterator
from emu3_jax.data.tokens.records import open_dataset
from emu3_jax.interop import exporting
from emu3_jax.interop.bundle import (
    Bundle,
    Language,
    assemble,
    check_same_language,
    load_language,
    read_learnt,
    read_max_context,
    read_vocab,
    save_language,
)
from emu3_jax.models.language import zigzag
from emu3_jax.models.language.attention_kernels import choice
from emu3_jax.models.language.cross_entropy import chunked_cross_entropy
from emu3_jax.models.language.transformer import Transformer, TransformerConfig, check_mesh
from emu3_jax.sequence import Grammar, TokenClass
from emu3_jax.text import load_text_tokenizer
from emu3_jax.train.program import Program
from emu3_jax.train.run.checkpoint import has_checkpoints
from emu3_jax.train.run_config import RunConfig
from emu3_jax.train.task import Loss, Task
from emu3_jax.train.tasks.language import transformer_start
from emu3_jax.train.tasks.language.transformer_programs import EvaluateProgram, SampleProgram
from emu3_jax.train.tasks.language.transformer_start import TransformerStart
from emu3_jax.vocab import Vocab

# Classes of predicted tokens with a loss metric of their own: loss/<name>.
REPORTED = {
    "text": TokenClass.TEXT,
    "image": TokenClass.IMAGE,
    "video": TokenClass.VIDEO,
    "structure": TokenClass.STRUCTURE,
}


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Settings of the cross-entropy.

    The weights per token class (0.5 on vision tokens, paper section 2.4) belong to the data and
    come with each batch.

    Attributes:
      chunk_tokens: positions whose logits exist at once on one device.
      z_loss: coefficient of log(Z)²; the paper mentions none.
      unroll: unroll the loop over chunks, so that the compiler's cost analysis counts all of it.
    """

    chunk_tokens: int = 512
    z_loss: float = 0.0
    unroll: bool = False


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """The whole config of the task.

    Attributes:
      model: the transformer. A config may leave out vocab_size: it is then that of the data.
      data: the token datasets, their mixture, and the batches.
      run: how to train.
      text_tokenizer: the tokenizer of the data: a SentencePiece *.model, a *.tiktoken rank file,
        or "bytes".
      loss: settings of the cross-entropy.
      start: initial weights.
      evaluation: entries to evaluate during training (evaluate.registry).
      task: name of this task in the registry.
    """

    model: TransformerConfig
    data: DataConfig
    run: RunConfig
    text_tokenizer: str
    loss: LossConfig = LossConfig()
    start: TransformerStart = TransformerStart()
    evaluation: tuple[dict, ...] = ()
    task: str = "pretrain"


class PretrainTask(Task):
    """Trains a Transformer on batches of packed rows; see data.tokens.pipeline for the arrays.

    Attributes:
      language: vocabulary, grammar and limits of the data, or of the run directory after
        `from_run`. None if neither was read; the task can then be lowered but not trained.
    """

    Config = PretrainConfig
    unit = "tokens"
    kind = exporting.LANGUAGE_MODEL

    def __init__(self, config: PretrainConfig, read_data: bool = True):
        self.config, self.model = config, Transformer(config.model)
        self.language = self.language_of(config) if read_data else None
        if read_data and config.model.vocab_size != self.language.vocab.size:
            raise ValueError(
                f"model.vocab_size is {config.model.vocab_size}, the data's vocabulary has "
                f"{self.language.vocab.size} ids"
            )

    @classmethod
    def resolve(
        cls, values: Mapping[str, Any], run_directory: os.PathLike | None = None
    ) -> PretrainConfig:
        """Reads a missing model.vocab_size from the run directory, or else from the data."""
        model = values.get("model", {})
        if not isinstance(model, Mapping) or "vocab_size" in model:
            return to_dataclass(cls.Config, values)
        stand_in = to_dataclass(cls.Config, {**values, "model": {"vocab_size": 1, **model}})
        if run_directory is not None:
            vocab = read_vocab(run_directory)
        else:
            vocab = cls.vocabulary_of(stand_in)
        sizes = dataclasses.replace(stand_in.model, vocab_size=vocab.size)
        return dataclasses.replace(stand_in, model=sizes)

    @classmethod
    def vocabulary_of(cls, config: PretrainConfig) -> Vocab:
        """Returns the vocabulary of the first dataset of the mixture."""
        return open_dataset(config.data.mixture[0].dataset).info.vocabulary

    @classmethod
    def language_of(cls, config: PretrainConfig) -> Language:
        """Returns the language that the first dataset of the mixture was made with."""
        info = open_dataset(config.data.mixture[0].dataset).info
        tokenizer = load_text_tokenizer(config.text_tokenizer)
        grammar = Grammar(info.vocabulary, tokenizer, info.video_format)
        context, start = config.data.sequence_length, config.start.transformer
        if start:  # a model that is tuned on shorter rows still reads the longer ones
            context = max(context, read_max_context(shipped.language_model(start)) or 0)
        return Language(
            info.vocabulary,
            grammar,
            vision_tokenizer_of(config.data.mixture) or None,
            context,
            media_rules(config.data.mixture),
        )

    def learns(self) -> set[str]:
        """Returns what the mixture teaches, of `data.tokens.mixture.DOCUMENT_TASKS`."""
        return {entry.ability for entry in self.config.data.mixture}

    @classmethod
    def from_run(cls, config: PretrainConfig, run_directory: os.PathLike) -> "PretrainTask":
        """Reads the language that the run directory keeps."""
        task = cls(config, read_data=False)
        task.language = load_language(run_directory)
        return task

    def init(self, key: jax.Array) -> Any:
        """Initialises the transformer on one token, a shape that fits every mesh."""
        return self.model.init(key, jnp.zeros((1, 1), jnp.int32))

    def initial_weights(self) -> Callable[[dict], dict] | None:
        """Returns the weights that the section `start` names."""
        c = self.config
        return transformer_start.initial_weights(c.start, c.model, c.data.mixture, self.language)

    def loss(
        self, params: Any, model_state: Any, batch: dict, key: jax.Array, step: jax.Array
    ) -> Loss:
        """Returns the chunked cross-entropy; its weight is the sum of the token weights."""
        del step
        config = self.config
        x_BSD = self.model.apply(
            {"params": params},
            batch["inputs"],
            batch["positions"],
            batch["segment_ids"],
            deterministic=config.model.dropout == config.model.probability_dropout == 0.0,
            method="hidden",
            rngs={"dropout": key},
        )
        result = chunked_cross_entropy(
            x_BSD,
            params["lm_head"]["kernel"],
            batch["targets"],
            batch["weights"],
            vocab_size=config.model.vocab_size,
            chunk_tokens=config.loss.chunk_tokens,
            z_loss=config.loss.z_loss,
            unroll=config.loss.unroll,
        )
        metrics = self._metrics(result.nll, batch)
        return Loss(result.total, result.weight, metrics, model_state)

    def _metrics(self, nll_BS: jax.Array, batch: dict) -> dict:
        """Returns nats per predicted token by class and source, without tokens of weight 0."""

        def pair(mask):
            mask = mask & (batch["weights"] > 0)
            return jnp.sum(nll_BS * mask), jnp.sum(mask.astype(jnp.float32))

        metrics = {f"loss/{n}": pair(batch["classes"] == c) for n, c in REPORTED.items()}
        for index, name in enumerate(self.config.data.source_names()):
            metrics[f"loss/source/{name}"] = pair(batch["sources"] == index)
        filled = jnp.sum((batch["segment_ids"] > 0).astype(jnp.float32))
        size = jnp.asarray(batch["segment_ids"].size, jnp.float32)
        return metrics | {"data/filled": (filled, size)}

    def abstract_batch(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the arrays of `data.tokens.pipeline.BatchIterator`, all sharded alike."""
        model, data = self.config.model, self.config.data
        check_mesh(model, mesh)
        machine = mesh.devices.flat[0].platform
        choice.check_mesh(model.attention, machine, mesh.shape["context"])
        sharding.check_divides(mesh, "batch", "data.batch_size", data.batch_size)
        zigzag.check_length(mesh, "data.sequence_length", data.sequence_length)
        here, shape = sharding.batch_sharding(mesh), (data.batch_size, data.sequence_length)
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=here)
            for name, (dtype, _) in FIELDS.items()
        }

    def batches(self, mesh: Mesh) -> BatchIterator:
        """Returns an iterator that reads only this process's rows of the global batch."""
        self.abstract_batch(mesh)  # raises if the mesh does not fit
        mine = sharding.rows_here(mesh, self.config.data.batch_size)
        return make_iterator(self.config.data, self.language.grammar, rows=mine)

    def units_per_batch(self) -> int:
        """Returns the positions in one batch, padding included."""
        return self.config.data.batch_size * self.config.data.sequence_length

    def flops_per_unit(self) -> float:
        """Returns model FLOPs per token: 6 per matmul parameter, and causal attention (half)."""
        c = self.config.model
        layer = c.hidden_size * c.head_dim * 2 * (c.num_heads + c.num_kv_heads)
        layer += 3 * c.hidden_size * c.intermediate_size
        matmul = c.num_layers * layer + c.hidden_size * c.vocab_size
        attention = self.config.data.sequence_length * c.num_heads * c.head_dim * c.num_layers
        return 6.0 * (matmul + attention)

    def save_beside(self, run_directory: os.PathLike) -> None:
        """Writes vocabulary, text tokenizer and limits, which generation from a run needs.

        What the model learnt and how much it reads include what was so before: in earlier starts of
        the run, from whatever mixture, or as the model of `start.transformer`.
        """
        before: tuple[str, ...] | None = ()
        context = self.language.max_context
        if has_checkpoints(run_directory):
            before = read_learnt(run_directory)
            if context is not None:
                context = max(context, read_max_context(run_directory) or 0)
        elif start := self.config.start.transformer:
            before = read_learnt(shipped.language_model(start))
        learnt = None if before is None else tuple(sorted(self.learns().union(before)))
        language = dataclasses.replace(self.language, learnt=learnt, max_context=context)
        save_language(run_directory, language)

    def check_beside(self, run_directory: os.PathLike) -> None:
        """The ids of the data must mean what they meant when the run began."""
        check_same_language(load_language(run_directory), self.language, f"{run_directory}", "data")

    def trained_model(self, variables: dict, label: str) -> Bundle:
        """Returns a bundle with the language of the data or of the run directory."""
        return assemble(self.model, variables, self.language, where=label)

    def export(
        self, folder: os.PathLike, variables: dict, options: exporting.ExportOptions
    ) -> None:
        """Writes a language model, or a whole -hf model if `options` has a vision tokenizer."""
        exporting.write_language_model(folder, self.trained_model(variables, "the run"), options)

    def programs(self) -> Mapping[str, Program]:
        """Returns "sample" (drawing images) and "evaluate" (scoring held-out documents)."""
        return {"sample": SampleProgram(self), "evaluate": EvaluateProgram(self)}

    def with_layers(self, num_layers: int) -> PretrainConfig:
        """Returns the config with `num_layers` layers, one micro-batch and an unrolled loss."""
        c = self.config
        rows = c.data.batch_size // c.run.accumulation
        return dataclasses.replace(
            c,
            model=dataclasses.replace(c.model, num_layers=num_layers, scan_layers=False),
            loss=dataclasses.replace(c.loss, unroll=True),
            data=dataclasses.replace(c.data, batch_size=rows),
            run=dataclasses.replace(c.run, accumulation=1),
        )
