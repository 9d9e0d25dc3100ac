"""Finite scalar quantisation: every dimension of a latent is rounded to a few levels."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from emu3_jax.models.vision.quantizers.gradients import straight_through
from emu3_jax.models.vision.quantizers.quantized import Quantized
from emu3_jax.models.vision.tokenizer_config import VisionTokenizerConfig

# Keeps unrounded values off the borders of the outer levels (Mentzer et al. 2023, appendix A.1).
MARGIN = 1e-3


class FiniteScalar(nn.Module):
    """Rounded latents, FSQ (Mentzer et al. 2023, arXiv 2309.15505, section 3.1, appendix A.1).

    Dimension i is squeezed by tanh into the span of its L_i levels and rounded; levels, divided by
    L_i // 2, lie in [-1, 1]. A code has the levels as digits, the first with weight 1. There are no
    parameters and no losses. `codes` begins with the tanh, and entries are values after it: an
    entry taken for a latent may have another code.
    """

    config: VisionTokenizerConfig

    def codes(self, latents: jax.Array) -> jax.Array:
        """float [..., D] -> int32 [...]."""
        digits = jnp.round(self._squeezed(latents)).astype(jnp.int32) + self._half_D
        return jnp.sum(digits * self._weights_D, axis=-1, dtype=jnp.int32)

    def entries(self, codes: jax.Array) -> jax.Array:
        """int [...] in [0, N) -> float32 [..., D] in [-1, 1]."""
        digits = codes[..., None] // self._weights_D % self._levels_D
        return (digits - self._half_D).astype(jnp.float32) / self._half_D

    def __call__(self, latents: jax.Array) -> Quantized:
        """Quantises float [..., D]."""
        codes = self.codes(latents)
        vectors = straight_through(self._squeezed(latents) / self._half_D, self.entries(codes))
        return Quantized(codes, vectors, {})

    def _squeezed(self, latents: jax.Array) -> jax.Array:
        """float [..., D] -> float32; rounded, these are the levels around 0."""
        span_D = (self._levels_D - 1) * (1 - MARGIN) / 2
        offset_D = np.where(self._levels_D % 2, 0.0, 0.5)  # even: no level in the middle
        shift_D = np.tan(offset_D / span_D)
        span_D, offset_D, shift_D = (
            jnp.asarray(x, jnp.float32) for x in (span_D, offset_D, shift_D)
        )
        return jnp.tanh(latents.astype(jnp.float32) + shift_D) * span_D - offset_D

    @property
    def _levels_D(self):  # noqa: N802 (the shape)
        return np.asarray(self.config.fsq_levels, np.int32)

    @property
    def _half_D(self):  # noqa: N802
        return self._levels_D // 2

    @property
    def _weights_D(self):  # noqa: N802
        return np.cumprod([1, *self.config.fsq_levels[:-1]]).astype(np.int32)
