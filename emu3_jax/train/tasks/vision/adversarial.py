"""Adversarial losses of the vision tokenizer: pure functions of logits, pixels and gradients.

The perceptual network and the discriminator are each differentiated once with respect to the
reconstructed pixels. The gradients are weighted there, and their sum is propagated through the
tokenizer once (`gradient_through`). The objective calls `adversarial_terms`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# VQGAN's (Esser et al. 2021, equation 7, "delta" there 1e-6; 1e-4 in its code).
ADAPTIVE_EPSILON = 1e-4


class _Losses(NamedTuple):
    """The two losses of one kind, of logits: discriminator(real, fake) and generator(fake)."""

    discriminator: Callable[[jax.Array, jax.Array], jax.Array]
    generator: Callable[[jax.Array], jax.Array]


LOSSES = {
    # Lim & Ye 2017, "Geometric GAN"; VQGAN's and MoVQGAN's choice.
    "hinge": _Losses(
        lambda real, fake: jnp.mean(jax.nn.relu(1.0 - real)) + jnp.mean(jax.nn.relu(1.0 + fake)),
        lambda fake: -jnp.mean(fake),
    ),
    # Goodfellow et al. 2014: -log D(real) - log(1 - D(fake)) against -log D(fake).
    "non_saturating": _Losses(
        lambda real, fake: jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake)),
        lambda fake: jnp.mean(jax.nn.softplus(-fake)),
    ),
}
"""Kind -> its two losses, means over patches. The real and fake halves of the discriminator's loss
are added, as in the papers, not averaged as in VQGAN's code."""


@dataclasses.dataclass(frozen=True)
class AdversarialConfig:
    """The adversarial part of the objective. Emu3's settings are not published.

    Attributes:
      weight: weight of the generator's loss; 0 turns the whole part off. MoVQGAN uses 0.1.
      kind: the loss, "hinge" or "non_saturating".
      adaptive: also multiply `weight` by the ratio of the reconstruction's gradient norm to the
        adversarial one (`adaptive_weight`).
      adaptive_limit: upper limit of that ratio; VQGAN's code has 1e4.
      start: number of steps before either side learns, so that reconstructions are worth judging.
      warmup: steps over which the generator's weight then rises from 0. The discriminator learns at
        full rate from `start` on, so that it leads.
      penalty: weight of the gradient penalty on real images, 0 for none (`gradient_penalty`; half
        of the paper's gamma). For a 70x70 PatchGAN it grows with the number of patches per image.
    """

    weight: float = 0.0
    kind: str = "hinge"
    adaptive: bool = True
    adaptive_limit: float = 1e4
    start: int = 0
    warmup: int = 0
    penalty: float = 0.0

    def __post_init__(self):
        if self.kind not in LOSSES:
            raise ValueError(
                f"adversarial kind must be one of {', '.join(LOSSES)}, found {self.kind!r}."
            )
        for name in ("weight", "penalty"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"adversarial {name} must be 0 or more, found {value!r}.")
        if not (math.isfinite(self.adaptive_limit) and self.adaptive_limit > 0):
            raise ValueError(
                f"adversarial adaptive_limit must be above 0, found {self.adaptive_limit!r}."
            )
        if not isinstance(self.adaptive, bool):
            raise ValueError(
                f"adversarial adaptive must be True or False, found {self.adaptive!r}."
            )
        for name in ("start", "warmup"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(
                    f"adversarial {name} must be a whole number of steps from 0, found {value!r}."
                )


def discriminator_loss(real: jax.Array, fake: jax.Array, kind: str) -> jax.Array:
    """Returns a scalar, low if `real` logits are high and `fake` logits low.

    Args:
      real, fake: logits of any shapes.
      kind: a key of LOSSES.
    """
    return LOSSES[kind].discriminator(real, fake)


def generator_loss(fake: jax.Array, kind: str) -> jax.Array:
    """Returns a scalar, low if the logits `fake`, of any shape, are high; `kind`: key of LOSSES."""
    return LOSSES[kind].generator(fake)


def gradient_penalty(logits_fn: Callable[[jax.Array], jax.Array], real: jax.Array) -> jax.Array:
    """R1 (Mescheder et al. 2018): mean over images of |d sum of its logits / d its pixels|^2.

    The squared norm is the slope of the sum along its own gradient. Differentiating this slope
    needs only convolutions and their first gradients; a gradient of a gradient takes four times as
    long on a CPU.

    Args:
      logits_fn: pixels [B, ..., 3] -> logits [B, ...]; the logits of an image depend on it alone.
      real: images or clips of the data set.

    Returns:
      Float32 scalar, differentiable (once) in the values that `logits_fn` closes over.
    """

    def total(pixels):
        return jnp.sum(logits_fn(pixels))

    direction = jax.lax.stop_gradient(jax.grad(total)(real))
    _, slope = jax.jvp(total, (real,), (direction,))  # |direction|^2
    penalty = slope.astype(jnp.float32) / real.shape[0]
    # Each factor of the square gives half of the derivative, and `direction` is a constant.
    return 2.0 * penalty - jax.lax.stop_gradient(penalty)


def ramp(step: jax.Array, start: int, warmup: int) -> jax.Array:
    """Returns float32 in [0, 1]: 0 before `start`, 1/warmup at it, 1 from start + warmup - 1 on.

    It is above 0 from `start` on for every `warmup`; with `warmup` 0 it is 1 from `start` on.
    `step` is the number of updates done.
    """
    risen = (jnp.asarray(step, jnp.float32) - start + 1.0) / max(warmup, 1)
    return jnp.clip(risen, 0.0, 1.0)


def adaptive_weight(
    reconstruction_gradient: jax.Array, adversarial_gradient: jax.Array, limit: float
) -> jax.Array:
    """The ratio of two gradients' norms (Esser et al. 2021, equation 7), a constant in [0, limit].

    Both gradients are with respect to the pixels of the reconstruction. VQGAN uses those of the
    decoder's last kernel, which needs two more backward passes, or one into a layer inside the
    model. A kernel's gradient is a sum over pixels in which differences can cancel; at the pixels
    every difference counts.

    ADAPTIVE_EPSILON must be added to a norm that does not shrink with the batch. The gradient of a
    mean over N pixel values is N times smaller at each than that of their sum, so the norms are
    multiplied by sqrt(N), which gives the root mean square of the gradient of the sum.

    Args:
      reconstruction_gradient: gradient of the pixel and perceptual losses, any shape.
      adversarial_gradient: gradient of the generator's loss, the same shape.
      limit: upper limit of the ratio.
    """
    scale = math.sqrt(reconstruction_gradient.size)
    norms = [
        scale * jnp.sqrt(jnp.sum(jnp.square(gradient.astype(jnp.float32))))
        for gradient in (reconstruction_gradient, adversarial_gradient)
    ]
    ratio = norms[0] / (norms[1] + ADAPTIVE_EPSILON)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, limit))


def gradient_through(pixels: jax.Array, value: jax.Array, gradient: jax.Array) -> jax.Array:
    """Returns a float32 scalar equal to `value` with the gradient `gradient` at `pixels`.

    `value` and `gradient` are treated as constants, so a term computed at stopped pixels counts
    once. `pixels` must be finite.
    """
    value, gradient, still = jax.lax.stop_gradient((value, gradient, pixels))
    moved = pixels.astype(jnp.float32) - still.astype(jnp.float32)  # zero, with a gradient of one
    return value + jnp.sum(gradient.astype(jnp.float32) * moved)


class AdversarialTerms(NamedTuple):
    """The losses of generator and discriminator.

    Attributes:
      generator_value: float32 scalar, the generator's loss times its weight.
      generator_gradient: float32, shape of the pixels: gradient of `generator_value` there. Both
        are constants, for `gradient_through`.
      discriminator_loss: float32 scalar, penalty included; 0 before the start. It is differentiable
        in the discriminator's parameters only.
      metrics: name -> float32 scalar, not weighted: generator, discriminator, weight (of the
        generator, with ramp and adaptive ratio), accuracy_real and accuracy_fake (shares of patches
        judged rightly; 0.5 is chance), logits_real and logits_fake (means), and penalty if used.
    """

    generator_value: jax.Array
    generator_gradient: jax.Array
    discriminator_loss: jax.Array
    metrics: dict[str, jax.Array]


def adversarial_terms(
    discriminate: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    pixels: jax.Array,
    target: jax.Array,
    config: AdversarialConfig,
    step: jax.Array,
    reconstruction_gradient: jax.Array | None,
) -> AdversarialTerms:
    """Returns the losses of both sides for one batch of images or of clips.

    Args:
      discriminate: (params, pixels) -> logits.
      params: params of the discriminator.
      pixels: the reconstruction, float [B, ..., 3] in about [-1, 1].
      target: the original, the same shape.
      config: settings; its weight is not 0.
      step: number of updates done.
      reconstruction_gradient: gradient of the other losses with respect to `pixels`; may be None if
        the weight is not adaptive.
    """
    pixels, target = jax.lax.stop_gradient((pixels, target))
    judged = jax.lax.stop_gradient(params)
    value, gradient = jax.value_and_grad(
        lambda fake: generator_loss(discriminate(judged, fake), config.kind)
    )(pixels)
    risen = ramp(step, config.start, config.warmup)
    weight = config.weight * risen
    if config.adaptive:
        weight *= adaptive_weight(reconstruction_gradient, gradient, config.adaptive_limit)

    # The compiler shares the fake logits with the generator's part: one pass, not two.
    real, fake = discriminate(params, target), discriminate(params, pixels)
    loss = discriminator_loss(real, fake, config.kind)
    metrics = {
        "generator": value,
        "discriminator": loss,
        "weight": weight,
        "accuracy_real": jnp.mean(real > 0, dtype=jnp.float32),
        "accuracy_fake": jnp.mean(fake < 0, dtype=jnp.float32),
        "logits_real": jnp.mean(real),
        "logits_fake": jnp.mean(fake),
    }
    if config.penalty:
        metrics["penalty"] = gradient_penalty(lambda x: discriminate(params, x), target)
        loss += config.penalty * metrics["penalty"]
    return AdversarialTerms(
        generator_value=weight * value,
        generator_gradient=weight * gradient.astype(jnp.float32),
        discriminator_loss=loss * (risen > 0),
        metrics=jax.lax.stop_gradient(metrics),
    )
