"""emu3_jax: one decoder-only transformer over one stream of text, image and video tokens.

What a user types after `import emu3_jax`; the rest of the package is reached by its modules. The
import itself is light: JAX is loaded by the first call.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from emu3_jax.interop.bundle import Bundle
    from emu3_jax.models.transformer import Transformer
    from emu3_jax.models.vision_tokenizer import VisionTokenizer

__all__ = ["load_bundle", "load_language_model", "load_vision_tokenizer"]


def load_vision_tokenizer(
    path: str | os.PathLike, mesh: "Mesh | None" = None
) -> "tuple[VisionTokenizer, Any]":
    """Reads a vision tokenizer.

    Args:
      path: a directory with config.json and safetensors files as BAAI or the -hf conversions keep
        them, or a run directory of `python -m emu3_jax.train`, whose newest checkpoint is taken.
      mesh: devices (`emu3_jax.sharding.make_mesh`) onto which the weights of a directory are read
        tensor by tensor; default: they stay on the host.

    Returns:
      (module, variables). `module.apply(variables, pixels, method="encode")` turns floats in
      [-1, 1], [B, H, W, 3] or [B, T, H, W, 3], into int32 codes; method="decode" goes back.

    Raises:
      ValueError: the directory holds no such thing, or files that do not fit together.
    """
    from emu3_jax.config import is_run_directory

    if is_run_directory(path):
        from emu3_jax.evaluate import loading

        return loading.load_vision_tokenizer(path)
    from emu3_jax.interop import vision_tokenizer

    return vision_tokenizer.load_vision_tokenizer(path, mesh)


def load_language_model(
    path: str | os.PathLike, mesh: "Mesh | None" = None
) -> "tuple[Transformer, Any]":
    """Reads a language model's weights, without vocabulary and tokenizers.

    Args:
      path: a directory with config.json and safetensors files as BAAI or the -hf conversions keep
        them, or a run directory of `python -m emu3_jax.train`, whose newest checkpoint is taken.
      mesh: devices (`emu3_jax.sharding.make_mesh`) onto which the weights of a directory are read
        tensor by tensor; default: the first device.

    Returns:
      (module, variables). `module.apply(variables, tokens)` turns int32 [B, S] into float32 logits
      [B, S, V].

    Raises:
      ValueError: the directory holds no such thing, or files that do not fit together.
    """
    from emu3_jax.config import is_run_directory

    if is_run_directory(path):
        bundle = load_bundle(path)
        return bundle.model, bundle.variables
    from emu3_jax.interop import language_model

    return language_model.load_language_model(path, mesh)


def load_bundle(
    path: str | os.PathLike,
    vision_tokenizer: str | os.PathLike | None = None,
    mesh: "Mesh | None" = None,
) -> "Bundle":
    """Reads a language model with all it needs to generate: vocabulary, grammar, tokenizers.

    Args:
      path: a run directory, a directory written by `python -m emu3_jax.convert`, or released
        weights with their rank file or, in the -hf layout, their tokenizer.
      vision_tokenizer: directory of the vision tokenizer, or None where only codes are wanted.
      mesh: as in `load_language_model`; default: the language model's weights stay on the host.

    Raises:
      ValueError: something is missing, or the two were not trained together.
    """
    from emu3_jax.config import is_run_directory

    if not is_run_directory(path):
        from emu3_jax.interop import bundle

        return bundle.load_bundle(path, vision_tokenizer, mesh)
    from emu3_jax.evaluate import loading
    from emu3_jax.interop.bundle import assemble, load_language

    found, label = loading.load_model(path)
    return assemble(found.model, found.variables, load_language(path), vision_tokenizer, label)
