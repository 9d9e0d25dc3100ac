"""The vision tokenizer's training task: reconstruct stills and clips through the codebook.

`vision_objective` defines the loss of a group, `codebook_maintenance` keeps the codes in use. This
module connects them to the loop: groups of a batch, optimizers, statistics.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from emu3_jax import sharding
from emu3_jax.data.pixels.pixel_batches import PixelConfig, PixelGroup, PixelIterator, pixel_batches
from emu3_jax.interop import exporting
from emu3_jax.models.vision.quantizers.gradients import unit_length
from emu3_jax.models.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig
from emu3_jax.train import model_flops
from emu3_jax.train.optimizer import OptimizerConfig, make_optimizer
from emu3_jax.train.program import Program
from emu3_jax.train.run_config import RunConfig
from emu3_jax.train.task import Loss, Task, TrainState
from emu3_jax.train.tasks.vision import codebook_maintenance, vision_start
from emu3_jax.train.tasks.vision.codebook_maintenance import CodebookConfig
from emu3_jax.train.tasks.vision.tokenize_program import TokenizeProgram
from emu3_jax.train.tasks.vision.vision_objective import (
    DISCRIMINATOR,
    ENCODING,
    VisionLossConfig,
    VisionObjective,
    mean_psnr,
    tokenizer_params,
)
from emu3_jax.train.tasks.vision.vision_start import VisionTokenizerStart


@dataclasses.dataclass(frozen=True)
class VisionTokenizerTrainConfig:
    """The whole config of the task.

    Attributes:
      model: the tokenizer.
      data: which stills and clips a batch holds.
      run: how to train.
      loss: terms of the objective and their weights.
      codebook: codebook maintenance.
      start: initial weights.
      evaluation: entries to evaluate during training (evaluate.registry).
      task: name of this task in the registry.
    """

    model: VisionTokenizerConfig
    data: PixelConfig
    run: RunConfig
    loss: VisionLossConfig = VisionLossConfig()
    codebook: CodebookConfig = CodebookConfig()
    start: VisionTokenizerStart = VisionTokenizerStart()
    evaluation: tuple[dict, ...] = ()
    task: str = "vision_tokenizer"

    def __post_init__(self):
        _check_groups(self.model, self.data.active)
        _check_maintenance(self.model, self.loss, self.codebook)


class VisionTokenizerTask(Task):
    """Trains a VisionTokenizer on batches {name of a group: [N, H, W, 3] or [N, T, H, W, 3]}."""

    Config = VisionTokenizerTrainConfig
    unit = "frames"
    kind = exporting.VISION_TOKENIZER
    headline = ("psnr/*", "loss/*_perceptual", "codebook/dead", "codebook/perplexity", "loss*")

    def __init__(self, config: VisionTokenizerTrainConfig, read_data: bool = True):
        self.config = config
        self.objective = VisionObjective(config.model, config.loss, read_data)
        self.model = self.objective.model
        self.note = self.objective.description

    def init(self, key: jax.Array) -> Any:
        """Initialises the tokenizer, the discriminator, usage counts and frozen networks."""
        model_key, discriminator_key = jax.random.split(key)
        examples = {_kind(g): jnp.zeros((1, *g.shape[1:])) for g in self.config.data.active}
        # A clip if there is one: a still passes through the same layers.
        example = examples.get("clips", examples.get("stills"))
        variables = dict(self.model.init(model_key, example, train=False))
        params = dict(variables["params"])
        c = self.config
        variables |= codebook_maintenance.start_counts(c.codebook, c.model.codebook_size, params)
        if self.objective.discriminator is not None:
            params[DISCRIMINATOR] = self.objective.init_discriminator(discriminator_key, examples)
        variables |= jax.tree.map(jnp.asarray, self.objective.frozen)
        return variables | {"params": params}

    def initial_weights(self) -> Callable[[dict], dict] | None:
        """Returns the weights that the section `start` names."""
        return vision_start.initial_weights(self.config.start, self.config.model)

    def optimizer(
        self, config: OptimizerConfig, steps: int
    ) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """Clips discriminator and tokenizer separately; frozen parts get no update."""
        loss = self.config.loss
        rate = loss.discriminator_rate * config.learning_rate
        main, schedule = make_optimizer(config, steps)
        # Weight decay would move the discriminator before its start.
        against = dataclasses.replace(config, learning_rate=rate, weight_decay=0.0)
        discriminator, _ = make_optimizer(against, steps)
        frozen = ENCODING if loss.decoder_only else ()

        def labels(params):
            names = {name: "tokenizer" for name in params}
            names |= {name: "frozen" for name in frozen if name in params}
            return names | ({DISCRIMINATOR: DISCRIMINATOR} if DISCRIMINATOR in params else {})

        parts = {
            "tokenizer": main, DISCRIMINATOR: discriminator, "frozen": optax.set_to_zero()
        }  # fmt: skip
        return optax.partition(parts, labels), schedule

    def loss(
        self, params: Any, model_state: Any, batch: dict, key: jax.Array, step: jax.Array
    ) -> Loss:
        """Returns the sum of the groups' objectives; the weight 1 averages micro-batches."""
        total, metrics = 0.0, {}
        latents, codes = {}, {}
        one = jnp.ones((), jnp.float32)
        for index, group in enumerate(self.config.data.active):
            target = batch[group.name]
            outcome = self.objective(
                params, model_state, target, jax.random.fold_in(key, index), step
            )
            model_state = {**model_state, "batch_stats": outcome.batch_stats}
            total += outcome.total
            metrics |= {f"loss/{group.name}_{n}": (term, one) for n, term in outcome.terms.items()}
            metrics |= {f"adversarial/{group.name}_{n}": m for n, m in outcome.judged.items()}
            metrics[f"psnr/{group.name}"] = (mean_psnr(outcome.pixels, target), one)
            if outcome.latents is not None:
                latents.setdefault(_kind(group), []).append(self._as_entries(outcome.latents))
            codes.setdefault(_kind(group), []).append(outcome.codes)
        model_state = codebook_maintenance.count(model_state, latents, codes, self.config.codebook)
        metrics |= codebook_maintenance.health(model_state, self.config.codebook)
        return Loss(total, one, metrics, model_state)

    def gradient_parts(self, gradients: Any) -> dict[str, Any]:
        """Returns the parts that are clipped separately: tokenizer and discriminator."""
        against = {DISCRIMINATOR: gradients[DISCRIMINATOR]} if DISCRIMINATOR in gradients else {}
        return {"tokenizer": tokenizer_params(gradients)} | against

    def after_update(self, state: TrainState, batch: dict, key: jax.Array) -> TrainState:
        """Maintains the codebook: revives dead codes and applies averages."""
        if self.config.loss.decoder_only:
            return state

        def latents_of(state):
            variables = {
                "params": tokenizer_params(state.params),
                "batch_stats": state.model_state["batch_stats"],
            }
            found = [
                self.model.apply(variables, batch[group.name], train=False).latents
                for group in self.config.data.active
            ]
            return jnp.concatenate([self._as_entries(x).reshape(-1, x.shape[-1]) for x in found])

        c = self.config
        codebook = c.codebook
        if c.start != VisionTokenizerStart():  # the entries were loaded: they have begun
            codebook = dataclasses.replace(codebook, start="as_is")
        return codebook_maintenance.after_update(state, codebook, c.run.steps, latents_of, key)

    def _as_entries(self, latents: jax.Array) -> jax.Array:
        """Returns latents as codebook entries: scaled to unit length for cosine codes."""
        return unit_length(latents) if self.config.model.quantizer == "cosine" else latents

    def batches(self, mesh: Mesh) -> PixelIterator:
        """Returns an iterator that reads only this process's rows of the global batch."""
        self.abstract_batch(mesh)  # raises if the mesh does not fit
        rows = functools.partial(sharding.rows_here, mesh)
        return pixel_batches(self.config.data, rows=rows)

    def abstract_batch(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns one float32 array in [-1, 1] per group."""
        groups = self.config.data.active
        for group in groups:
            sharding.check_divides(mesh, "batch", f"data.groups.{group.name}.count", group.count)
        here = NamedSharding(mesh, sharding.partition_spec("batch"))
        return {
            group.name: jax.ShapeDtypeStruct(group.shape, jnp.float32, sharding=here)
            for group in groups
        }

    def units_per_batch(self) -> int:
        """Returns the frames in one batch; a still is one frame."""
        return sum(group.count * group.frames for group in self.config.data.active)

    def flops_per_unit(self) -> float:
        """Returns model FLOPs per frame, all terms of the objective included; traces the loss."""
        c = self.config
        if c.model.remat:  # recomputation does not count
            once = dataclasses.replace(c, model=dataclasses.replace(c.model, remat=False))
            return VisionTokenizerTask(once, read_data=False).flops_per_unit()

        def gradients(params, model_state, batch, key, step):
            return jax.grad(lambda p: self.loss(p, model_state, batch, key, step).total)(params)

        key = jax.random.key(0)
        variables = nn.unbox(jax.eval_shape(self.init, key))
        params = variables.pop("params")
        batch = {g.name: jax.ShapeDtypeStruct(g.shape, jnp.float32) for g in c.data.active}
        step = jnp.zeros((), jnp.int32)
        total = model_flops.of_call(gradients, params, variables, batch, key, step)
        return total / self.units_per_batch()

    def model_parts(self, variables: dict) -> dict:
        """Returns the variables without the discriminator and the usage counts."""
        params = tokenizer_params(variables["params"])
        return {"params": params, "batch_stats": variables["batch_stats"]}

    def trained_model(self, variables: dict, label: str) -> tuple[VisionTokenizer, dict]:
        """Returns (module, variables)."""
        del label
        return self.model, variables

    def export(
        self, folder: os.PathLike, variables: dict, options: exporting.ExportOptions
    ) -> None:
        """Writes a vision tokenizer; its pixel limits are the areas of the training images."""
        limits = self._pixel_limits()
        exporting.write_vision_tokenizer(folder, self.model, variables, limits, options)

    def save_beside(self, run_directory: os.PathLike) -> None:
        """Writes the pixel limits of images, as `export` does."""
        exporting.write_pixel_limits(run_directory, self._pixel_limits())

    def _pixel_limits(self) -> tuple[int, int]:
        areas = [group.size**2 for group in self.config.data.groups]
        return min(areas), max(areas)

    def programs(self) -> Mapping[str, Program]:
        """Returns "tokenize": encoding images or clips to codes."""
        return {"tokenize": TokenizeProgram(self)}


def _kind(group: PixelGroup) -> str:
    """Returns what the arrays of a group are: "stills" or "clips"."""
    return "stills" if group.kind == "stills" else "clips"


def _check_groups(model: VisionTokenizerConfig, groups: tuple[PixelGroup, ...]) -> None:
    for group in groups:
        factors = [("size", group.size, "spatial", model.spatial_factor)]
        if _kind(group) == "clips":
            factors.append(("frames", group.frames, "temporal", model.temporal_downsample_factor))
        for name, value, axis, factor in factors:
            if value % factor:
                raise ValueError(
                    f"data.groups: {name} {value} of {group.name} is not a multiple of the "
                    f"tokenizer's {axis} factor {factor}"
                )


def _check_maintenance(
    model: VisionTokenizerConfig, loss: VisionLossConfig, codebook: CodebookConfig
) -> None:
    if codebook.average_decay and loss.decoder_only:
        raise ValueError(
            "codebook.average_decay moves the codebook, which loss.decoder_only keeps as it is; "
            "set one of them"
        )
    if codebook.average_decay and model.quantizer not in ("nearest", "cosine"):
        raise ValueError(
            f"codebook.average_decay goes with the quantizers nearest and cosine, "
            f"model.quantizer is {model.quantizer}"
        )
