"""Writes a trained model from memory as a directory of weights in a released layout."""

import dataclasses
import os
from typing import Any

from etils import epath

from emu3_jax.files import write_json
from emu3_jax.interop import hf_export
from emu3_jax.interop.bundle import Bundle, save_bundle
from emu3_jax.interop.relayout import PREPROCESSOR_FILE
from emu3_jax.interop.vision import tokenizer_files
from emu3_jax.models.vision.tokenizer import VisionTokenizer

LANGUAGE_MODEL, VISION_TOKENIZER = PARTS = ("language_model", "vision_tokenizer")
BAAI, HF, PEFT = LAYOUTS = ("baai", "hf", "peft")  # "peft": adapters without their base


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """How a model is written.

    Attributes:
      layout: one of LAYOUTS.
      dtype: type in the file, a name in formats.safetensors_io.DTYPES, or SAME for the arrays' own.
      vision_tokenizer: (module, variables) to write with a language model as one -hf model.
    """

    layout: str
    dtype: str
    vision_tokenizer: tuple[VisionTokenizer, Any] | None = None


def write_language_model(folder: os.PathLike, model: Bundle, options: ExportOptions) -> None:
    """Writes a language model, in BAAI's layout with its vocabulary and text tokenizer."""
    if options.layout == BAAI:
        save_bundle(folder, model, options.dtype)
        return
    language = (model.model.config, model.variables["params"])
    if options.vision_tokenizer is None:
        hf_export.save_language_model(
            folder, language, model.vocab, model.max_context, options.dtype
        )
        return
    vision, variables = options.vision_tokenizer
    hf_export.save_model(
        folder,
        language,
        (vision.config, variables),
        model.vocab,
        model.max_context,
        model.vocab.placeholder(),
        options.dtype,
    )


def write_vision_tokenizer(
    folder: os.PathLike,
    module: VisionTokenizer,
    variables: Any,
    limits: tuple[int, int],
    options: ExportOptions,
) -> None:
    """Writes a vision tokenizer and the pixel limits of its images.

    Args:
      folder: an existing directory.
      module, variables: the tokenizer.
      limits: minimum and maximum pixels of an image.
      options: layout and dtype.
    """
    if options.layout == HF:
        hf_export.save_vision_tokenizer(folder, (module.config, variables), options.dtype)
    else:
        tokenizer_files.save(folder, module.config, variables, options.dtype)
    write_pixel_limits(folder, limits)


def write_pixel_limits(folder: os.PathLike, limits: tuple[int, int]) -> None:
    """Writes the least and most pixels of an image beside a vision tokenizer."""
    least, most = limits
    write_json(epath.Path(folder) / PREPROCESSOR_FILE, {"min_pixels": least, "max_pixels": most})
