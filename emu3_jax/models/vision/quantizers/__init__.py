"""Quantizers: latents to integer codes and to the vectors that are decoded.

All are linen modules with one interface: `codes(latents)` float [..., D] -> int32 [...],
`entries(codes)` -> float32 [..., D], and a call on latents -> `Quantized`, whose vectors are
exactly the entries of its codes. `nearest`, `cosine` and `ibq` have a table of entries, the
parameter "embedding" [N, D], which `maintenance` keeps in use; `lfq` and `fsq` have no parameters.
"""

import jax
import jax.numpy as jnp

from emu3_jax.models.vision.quantizers.codebook import CosineCodebook, NearestCodebook
from emu3_jax.models.vision.quantizers.fsq import FiniteScalar
from emu3_jax.models.vision.quantizers.ibq import IndexBackpropagation
from emu3_jax.models.vision.quantizers.lfq import LookupFree
from emu3_jax.models.vision.quantizers.quantized import Quantized
from emu3_jax.models.vision.tokenizer_config import VisionTokenizerConfig

__all__ = ["Quantized", "all_entries", "make_quantizer"]

QUANTIZERS = {
    "nearest": NearestCodebook,
    "cosine": CosineCodebook,
    "ibq": IndexBackpropagation,
    "lfq": LookupFree,
    "fsq": FiniteScalar,
}


def make_quantizer(config: VisionTokenizerConfig, name: str | None = None):
    """The module named by `config.quantizer`; the config has checked its sizes."""
    return QUANTIZERS[config.quantizer](config, name=name)


def all_entries(config: VisionTokenizerConfig, params: dict) -> jax.Array:
    """float32 [N, D], row k is the vector that is decoded for code k.

    Args:
      config: of a vision tokenizer.
      params: its parameters, plain arrays.
    """
    variables = {"params": params["quantize"]} if "quantize" in params else {}
    codes = jnp.arange(config.codebook_size)
    return make_quantizer(config).apply(variables, codes, method="entries")
