"""The vision tokenizer's training task: reconstruct stills and clips through the codebook.

What is minimised is in `vision_objective`, how the codebook is kept in use in `codebook`; this is
their place in the loop: groups of a batch, optimizers, statistics.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from emu3_jax import sharding
from emu3_jax.data.pixels import PixelConfig, PixelGroup, pixel_batches
from emu3_jax.models.quantizers.gradients import unit_length
from emu3_jax.models.vision_tokenizer import VisionTokenizerConfig
from emu3_jax.train import codebook, model_flops
from emu3_jax.train.codebook import CodebookConfig
from emu3_jax.train.optimizer import OptimizerConfig, make_optimizer
from emu3_jax.train.state import Loss, TrainState
from emu3_jax.train.vision_objective import (
    ENCODING,
    OPPONENT,
    VisionLossConfig,
    VisionObjective,
    mean_psnr,
    tokenizer_params,
)


class VisionTokenizerTask:
    """Trains a VisionTokenizer on batches {group's name: [N,H,W,3] or [N,T,H,W,3]}."""

    unit = "frames"

    def __init__(
        self,
        model: VisionTokenizerConfig,
        loss: VisionLossConfig,
        data: PixelConfig,
        steps: int,
        care: CodebookConfig,
        read_files: bool = True,
    ):
        self.config, self.loss_config, self.data, self.steps = model, loss, data, steps
        self.care = care
        _check_groups(model, data.active)
        _check_care(model, loss, care)
        self.objective = VisionObjective(model, loss, read_files)
        self.model = self.objective.model
        self.note = self.objective.description

    def init(self, key: jax.Array) -> Any:
        """See Task."""
        model_key, opponent_key = jax.random.split(key)
        examples = {_kind(g): jnp.zeros((1, *g.shape[1:])) for g in self.data.active}
        # A clip, where there are any: a still passes through the same layers.
        example = examples.get("clips", examples.get("stills"))
        variables = dict(self.model.init(model_key, example, train=False))
        params = dict(variables["params"])
        variables |= codebook.start_counts(self.care, self.config.codebook_size, params)
        if self.objective.opponent is not None:
            params[OPPONENT] = self.objective.init_opponent(opponent_key, examples)
        variables |= jax.tree.map(jnp.asarray, self.objective.frozen)
        return variables | {"params": params}

    def optimizer(
        self, config: OptimizerConfig, steps: int
    ) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """See Task. Opponent and tokenizer are clipped apart; what is frozen has no optimizer."""
        rate = self.loss_config.discriminator_rate * config.learning_rate
        main, schedule = make_optimizer(config, steps)
        # Weight decay would move the opponent before its start.
        against = dataclasses.replace(config, learning_rate=rate, weight_decay=0.0)
        opponent, _ = make_optimizer(against, steps)
        frozen = ENCODING if self.loss_config.decoder_only else ()

        def labels(params):
            names = {name: "tokenizer" for name in params}
            names |= {name: "frozen" for name in frozen if name in params}
            return names | ({OPPONENT: "opponent"} if OPPONENT in params else {})

        parts = {"tokenizer": main, "opponent": opponent, "frozen": optax.set_to_zero()}
        return optax.partition(parts, labels), schedule

    def loss(
        self, params: Any, model_state: Any, batch: dict, key: jax.Array, step: jax.Array
    ) -> Loss:
        """See Task. The weight is one, so micro-batches are averaged."""
        total, metrics = 0.0, {}
        latents, codes = {}, {}
        one = jnp.ones((), jnp.float32)
        for index, group in enumerate(self.data.active):
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
        model_state = codebook.count(model_state, latents, codes, self.care)
        metrics |= codebook.health(model_state, self.care)
        return Loss(total, one, metrics, model_state)

    def gradient_parts(self, gradients: Any) -> dict[str, Any]:
        """The tokenizer's and, where there is one, the opponent's: they are clipped apart."""
        opponent = {"opponent": gradients[OPPONENT]} if OPPONENT in gradients else {}
        return {"tokenizer": tokenizer_params(gradients)} | opponent

    def after_update(self, state: TrainState, batch: dict, key: jax.Array) -> TrainState:
        """See Task: looks after the codebook."""
        if self.loss_config.decoder_only:
            return state

        def latents_of(state):
            variables = {
                "params": tokenizer_params(state.params),
                "batch_stats": state.model_state["batch_stats"],
            }
            found = [
                self.model.apply(variables, batch[group.name], train=False).latents
                for group in self.data.active
            ]
            return jnp.concatenate([self._as_entries(x).reshape(-1, x.shape[-1]) for x in found])

        return codebook.after_update(state, self.care, self.steps, latents_of, key)

    def _as_entries(self, latents: jax.Array) -> jax.Array:
        """The latents where entries lie: on the unit sphere for cosine codes."""
        return unit_length(latents) if self.config.quantizer == "cosine" else latents

    def batches(self, mesh: Mesh):
        """See Task. Each process reads only its own rows of the global batch."""
        self.abstract_batch(mesh)  # refuses a mesh that does not fit
        rows = functools.partial(sharding.rows_here, mesh)
        return pixel_batches(self.data, rows=rows)

    def abstract_batch(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """See Task."""
        for group in self.data.active:
            sharding.check_divides(mesh, "batch", f"data.groups.{group.name}.count", group.count)
        here = self.batch_shardings(mesh)
        return {
            group.name: jax.ShapeDtypeStruct(group.shape, jnp.float32, sharding=here[group.name])
            for group in self.data.active
        }

    def batch_shardings(self, mesh: Mesh) -> Any:
        """See Task."""
        here = NamedSharding(mesh, sharding.partition_spec("batch"))
        return {group.name: here for group in self.data.active}

    def tokens_per_batch(self) -> int:
        """Frames in one batch."""
        return sum(group.count * group.frames for group in self.data.active)

    def flops_per_unit(self) -> float:
        """Model FLOPs per frame of a batch, all terms of the objective with it; traces the loss."""
        if self.config.remat:  # what is computed again does not count
            config = dataclasses.replace(self.config, remat=False)
            rest = (self.loss_config, self.data, self.steps, self.care)
            return VisionTokenizerTask(config, *rest, read_files=False).flops_per_unit()

        def gradients(params, model_state, batch, key, step):
            return jax.grad(lambda p: self.loss(p, model_state, batch, key, step).total)(params)

        key = jax.random.key(0)
        variables = nn.unbox(jax.eval_shape(self.init, key))
        params = variables.pop("params")
        batch = {g.name: jax.ShapeDtypeStruct(g.shape, jnp.float32) for g in self.data.active}
        step = jnp.zeros((), jnp.int32)
        total = model_flops.of_call(gradients, params, variables, batch, key, step)
        return total / self.tokens_per_batch()


def _kind(group: PixelGroup) -> str:
    """What the tokenizer sees of a group: "stills" or "clips"."""
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


def _check_care(model: VisionTokenizerConfig, loss: VisionLossConfig, care: CodebookConfig) -> None:
    if care.average_decay and loss.decoder_only:
        raise ValueError(
            "codebook.average_decay moves the codebook, which loss.decoder_only keeps as it is; "
            "set one of them"
        )
    if care.average_decay and model.quantizer not in ("nearest", "cosine"):
        raise ValueError(
            f"codebook.average_decay goes with the quantizers nearest and cosine, "
            f"model.quantizer is {model.quantizer}"
        )
