"""The vision tokenizer's training task: reconstruct stills and clips through the codebook.

Emu3 trained its tokenizer with L2, LPIPS, GAN and commitment losses (paper section 2.2) and
published none of the weights of these terms; those below are ours. This task has the pixel and
codebook terms; a term that needs a network of its own (perceptual, adversarial) is one more
entry in `reconstruction_terms`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from emu3_jax import sharding
from emu3_jax.data.pixels import PixelConfig, pixel_batches
from emu3_jax.models import quantizer
from emu3_jax.models.vision_tokenizer import (
    VisionOutput,
    VisionTokenizer,
    VisionTokenizerConfig,
)
from emu3_jax.train.state import Loss, TrainState

USAGE = "codebook_usage"


@dataclasses.dataclass(frozen=True)
class VisionLossConfig:
    """Weights of the objective, and the care of the codebook. None of them is published.

    Attributes:
      l2, l1: pixel errors in [-1, 1], mean over pixels.
      commitment: pulls latents to their code (0.25 as in MoVQGAN's config).
      codebook: pulls codes to their latents.
      clips: weight of the clip losses beside those of the stills.
      usage_decay: per step, of the moving count of how often each code is chosen.
      revive_every: steps between revivals of dead codes, of which the first follows step 1; 0
        turns revival off.
      revive_below: a code is dead when its moving count is under this share of the mean count.
      revive_until: share of the run after which codes are left alone, so that they settle.
    """

    l2: float = 1.0
    l1: float = 0.1
    commitment: float = 0.25
    codebook: float = 1.0
    clips: float = 1.0
    usage_decay: float = 0.97
    revive_every: int = 50
    revive_below: float = 0.05
    revive_until: float = 0.7


def reconstruction_terms(pixels: jax.Array, target: jax.Array) -> dict[str, jax.Array]:
    """Name → scalar error between reconstruction and target, both float in [-1, 1]."""
    error = pixels.astype(jnp.float32) - target.astype(jnp.float32)
    return {"l2": jnp.mean(jnp.square(error)), "l1": jnp.mean(jnp.abs(error))}


def mean_psnr(pixels: jax.Array, target: jax.Array) -> jax.Array:
    """Mean over pictures of the PSNR in dB; arrays [B, …, C] in [-1, 1], so the peak is 2."""
    pixels = jnp.clip(pixels.astype(jnp.float32), -1.0, 1.0)
    axes = tuple(range(1, pixels.ndim))
    mse_B = jnp.mean(jnp.square(pixels - target), axis=axes)
    return jnp.mean(-10.0 * jnp.log10(jnp.maximum(mse_B, 1e-10) / 4.0))


class VisionTokenizerTask:
    """Trains a VisionTokenizer on batches {"stills": [N,H,W,3], "clips": [M,T,H,W,3]}."""

    unit = "frames"

    def __init__(
        self, model: VisionTokenizerConfig, loss: VisionLossConfig, data: PixelConfig, steps: int
    ):
        self.config, self.loss_config, self.data, self.steps = model, loss, data, steps
        self.model = VisionTokenizer(model)
        factor = model.spatial_factor
        if data.image_size % factor:
            raise ValueError(
                f"data.image_size {data.image_size} is not a multiple of the tokenizer's "
                f"spatial factor {factor}"
            )
        if data.frames % model.temporal_downsample_factor:
            raise ValueError(
                f"data.frames {data.frames} is not a multiple of the tokenizer's temporal "
                f"factor {model.temporal_downsample_factor}"
            )

    def init(self, key: jax.Array) -> Any:
        """See Task."""
        size = self.data.image_size
        clip = jnp.zeros((1, self.data.frames, size, size, 3), jnp.float32)
        variables = dict(self.model.init(key, clip, train=False))
        usage = jnp.zeros((self.config.codebook_size,), jnp.float32)
        variables[USAGE] = nn.LogicallyPartitioned(usage, names=("code",))
        return variables

    def _forward(self, params, model_state, pixels, key) -> tuple[VisionOutput, Any]:
        variables = {"params": params, "batch_stats": model_state["batch_stats"]}
        output, updated = self.model.apply(
            variables, pixels, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )
        return output, {**model_state, "batch_stats": updated["batch_stats"]}

    def loss(self, params: Any, model_state: Any, batch: dict, key: jax.Array) -> Loss:
        """See Task. The weight is one, so micro-batches are averaged."""
        config = self.loss_config
        weights = {"stills": 1.0, "clips": config.clips}
        total, metrics, codes = 0.0, {}, []
        one = jnp.ones((), jnp.float32)
        for index, (kind, weight) in enumerate(weights.items()):
            if kind not in batch:
                continue
            target = batch[kind]
            output, model_state = self._forward(
                params, model_state, target, jax.random.fold_in(key, index)
            )
            terms = reconstruction_terms(output.pixels, target)
            terms["commitment"] = quantizer.commitment_loss(output.latents, output.quantized_raw)
            terms["codebook"] = quantizer.codebook_loss(output.latents, output.quantized_raw)
            total += weight * sum(getattr(config, name) * term for name, term in terms.items())
            metrics |= {f"loss/{kind}_{name}": (term, one) for name, term in terms.items()}
            metrics[f"psnr/{kind}"] = (mean_psnr(output.pixels, target), one)
            codes.append(output.codes.reshape(-1))
        usage = quantizer.update_usage(
            model_state[USAGE], jnp.concatenate(codes), config.usage_decay
        )
        metrics["codebook/perplexity"] = (quantizer.perplexity(usage), one)
        dead = usage < self._dead_below(usage)
        metrics["codebook/dead"] = (jnp.mean(dead.astype(jnp.float32)), one)
        return Loss(total, one, metrics, {**model_state, USAGE: usage})

    def after_update(self, state: TrainState, batch: dict, key: jax.Array) -> TrainState:
        """Puts dead codes where latents are, at intervals and until the codebook should settle."""
        config = self.loss_config
        if not config.revive_every:
            return state
        step = state.step + 1
        due = (step % config.revive_every == 0) & (step <= config.revive_until * self.steps)
        due |= step == 1  # hardly an entry is in use yet: the codebook starts on latents
        return jax.lax.cond(due, lambda s: self._revive(s, batch, key), lambda s: s, state)

    def _revive(self, state: TrainState, batch: dict, key: jax.Array) -> TrainState:
        variables = {"params": state.params, "batch_stats": state.model_state["batch_stats"]}
        latents = [
            self.model.apply(variables, batch[kind], train=False).latents
            for kind in ("stills", "clips")
            if kind in batch
        ]
        latents_MD = jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in latents])
        usage = state.model_state[USAGE]
        codebook, revived = quantizer.revive_dead_codes(
            self._codebook(state.params), usage, latents_MD, key, self._dead_below(usage)
        )
        # A revived code gets the mean count: time to be chosen before it is looked at again.
        usage = jnp.where(revived, jnp.mean(usage), usage)
        state = state.replace(
            params=self._with_codebook(state.params, codebook),
            model_state={**state.model_state, USAGE: usage},
        )
        if state.ema is not None:
            averaged = jnp.where(revived[:, None], codebook, self._codebook(state.ema))
            state = state.replace(ema=self._with_codebook(state.ema, averaged))
        return state

    def _dead_below(self, usage_N: jax.Array) -> jax.Array:
        return self.loss_config.revive_below * jnp.mean(usage_N)

    @staticmethod
    def _codebook(params):
        return params["quantize"]["embedding"]

    @staticmethod
    def _with_codebook(params, codebook):
        return {**params, "quantize": {**params["quantize"], "embedding": codebook}}

    def batches(self, mesh: Mesh):
        """See Task. Every process would read the whole batch, so there may be only one."""
        if jax.process_count() > 1:
            raise ValueError("the vision tokenizer is trained by one process, not several")
        self.abstract_batch(mesh)  # refuses a mesh that does not fit
        return pixel_batches(self.data)

    def abstract_batch(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """See Task."""
        data, side = self.data, self.data.image_size
        for name in ("stills_per_batch", "clips_per_batch"):
            sharding.check_divides(mesh, "batch", f"data.{name}", getattr(data, name))
        shapes = {
            "stills": (data.stills_per_batch, side, side, 3),
            "clips": (data.clips_per_batch, data.frames, side, side, 3),
        }
        return {
            kind: jax.ShapeDtypeStruct(shapes[kind], jnp.float32, sharding=here)
            for kind, here in self.batch_shardings(mesh).items()
        }

    def batch_shardings(self, mesh: Mesh) -> Any:
        """See Task."""
        here = NamedSharding(mesh, sharding.partition_spec("batch"))
        counts = {"stills": self.data.stills_per_batch, "clips": self.data.clips_per_batch}
        return {kind: here for kind, count in counts.items() if count}

    def tokens_per_batch(self) -> int:
        """Frames in one batch."""
        return self.data.stills_per_batch + self.data.clips_per_batch * self.data.frames

    def flops_per_unit(self) -> float:
        """Not counted for convolutions yet: no utilisation is reported."""
        return 0.0
