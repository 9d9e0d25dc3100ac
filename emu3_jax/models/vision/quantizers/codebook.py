"""A learned table of entries; each latent takes the nearest."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from emu3_jax.models.vision.quantizers.gradients import rotated, straight_through, unit_length
from emu3_jax.models.vision.quantizers.quantized import Quantized, codebook_loss, commitment_loss
from emu3_jax.models.vision.quantizers.search import nearest_codes
from emu3_jax.models.vision.tokenizer_config import VisionTokenizerConfig

GRADIENTS = {"straight_through": straight_through, "rotation": rotated}


def table(module: nn.Module, initial: Callable) -> jax.Array:
    """The parameter "embedding" [N, D] of a quantizer with a `config`."""
    config = module.config
    return module.param(
        "embedding",
        nn.with_logical_partitioning(initial, ("code", None)),
        (config.codebook_size, config.embed_dim),
        jnp.dtype(config.param_dtype),
    )


class NearestCodebook(nn.Module):
    """Plain nearest neighbours without normalisation, as in Emu3.

    Losses (van den Oord et al. 2017, equation 3): "commitment" and "codebook".
    """

    config: VisionTokenizerConfig

    def setup(self):  # noqa: D102 (linen's hook)
        self.embedding = table(self, self._initial)

    def codes(self, latents: jax.Array) -> jax.Array:
        """float [..., D] -> int32 [...]; no gradient flows through the choice."""
        projected = jax.lax.stop_gradient(self._projected(latents.astype(jnp.float32)))
        return nearest_codes(projected, self._projected(self.embedding.astype(jnp.float32)))

    def entries(self, codes: jax.Array) -> jax.Array:
        """int [...] in [0, N) -> float32 [..., D]; the gradient reaches the table."""
        return self._projected(jnp.take(self.embedding, codes, axis=0).astype(jnp.float32))

    def __call__(self, latents: jax.Array) -> Quantized:
        """Quantises float [..., D]."""
        codes = self.codes(latents)
        entries = self.entries(codes)
        latents = self._projected(latents.astype(jnp.float32))
        losses = {
            "commitment": commitment_loss(latents, entries),
            "codebook": codebook_loss(latents, entries),
        }
        return Quantized(codes, GRADIENTS[self.config.gradient](latents, entries), losses)

    def _initial(self, key, shape, dtype):
        # U(-1/N, 1/N): the initialisation of the released code.
        return jax.random.uniform(key, shape, dtype, -1.0 / shape[0], 1.0 / shape[0])

    def _projected(self, x):
        """x in the space in which latents and entries are compared."""
        return x


class CosineCodebook(NearestCodebook):
    """Latents and entries on the unit sphere: the entry at the smallest angle.

    ViT-VQGAN (Yu et al. 2021, arXiv 2110.04627, section 3.2). Decoded vectors have length 1, and
    the losses are distances on the sphere. The length of a row of the table has no effect.
    """

    def _initial(self, key, shape, dtype):
        return jax.random.normal(key, shape, dtype)  # all directions are equally likely

    def _projected(self, x):
        return unit_length(x)
