"""emu3_jax: one decoder-only transformer over one stream of text, image and video tokens.

This module holds the public entry points; import everything else from its own module. Importing
the package is cheap: the first call loads JAX.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from emu3_jax.interop.bundle import Bundle
    from emu3_jax.models.language.transformer import Transformer
    from emu3_jax.models.vision.tokenizer import VisionTokenizer

__version__ = "0.1.0"
__all__ = ["load_bundle", "load_language_model", "load_vision_tokenizer"]


def load_vision_tokenizer(
    path: str | os.PathLike, mesh: "Mesh | None" = None
) -> "tuple[VisionTokenizer, Any]":
    """Reads a vision tokenizer.

    Args:
      path: a directory with config.json and safetensors files in BAAI's or the -hf layout, a run
        directory of `python -m emu3_jax.train` (its newest checkpoint is read), or the name of a
        shipped one: "nano", "photo" or "styles".
      mesh: devices (`emu3_jax.sharding.make_mesh`) that receive the weights, tensor by tensor;
        default: the first device.

    Returns:
      (module, variables). `module.apply(variables, pixels, method="encode")` turns floats in
      [-1, 1], [B, H, W, 3] or [B, T, H, W, 3], into int32 codes; method="decode" goes back.

    Raises:
      ValueError: the directory holds no such model, or its files do not fit together.
    """
    from emu3_jax.train import weights

    return weights.load_vision_tokenizer(path, mesh=mesh)


def load_language_model(
    path: str | os.PathLike, mesh: "Mesh | None" = None
) -> "tuple[Transformer, Any]":
    """Reads a language model's weights, without vocabulary and tokenizers.

    Args:
      path: a directory with config.json and safetensors files in BAAI's or the -hf layout, a run
        directory of `python -m emu3_jax.train` (its newest checkpoint is read), or the name of a
        shipped one: "nano" or "styles".
      mesh: devices (`emu3_jax.sharding.make_mesh`) that receive the weights, tensor by tensor;
        default: the first device.

    Returns:
      (module, variables). `module.apply(variables, tokens)` turns int32 [B, S] into float32 logits
      [B, S, V].

    Raises:
      ValueError: the directory holds no such model, or its files do not fit together.
    """
    from emu3_jax.train import weights

    return weights.load_transformer(path, mesh)


def load_bundle(
    path: str | os.PathLike,
    vision_tokenizer: str | os.PathLike | None = None,
    mesh: "Mesh | None" = None,
) -> "Bundle":
    """Reads a language model with all that generation needs: vocabulary, grammar, tokenizers.

    Args:
      path: a run directory, a directory written by `python -m emu3_jax.convert`, released weights
        with their rank file or, in the -hf layout, their tokenizer, or the name "nano" or
        "styles".
      vision_tokenizer: directory or name of the vision tokenizer, or None if only codes are
        needed.
      mesh: as in `load_language_model`, for the language model; default: the first device.

    Raises:
      ValueError: something is missing, or the two were not trained together.
    """
    from emu3_jax.interop.bundle import with_vision
    from emu3_jax.train import weights

    bundle, label = weights.load_language_model(path, mesh=mesh)
    if vision_tokenizer is None:
        return bundle
    vision, variables = weights.load_vision_tokenizer(vision_tokenizer)
    return with_vision(bundle, vision, variables, str(vision_tokenizer), label)
