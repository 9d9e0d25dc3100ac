"""Converts a directory of weights to the other layout, or the same one, from file to file.

Only the type changes, and only on request: all bits are kept, including those of BatchNorm's
counters. Memory holds one tensor at a time and the files being written.
"""

import itertools
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence

import numpy as np

from emu3_jax.files import read_json
from emu3_jax.interop import bundle, hf_export
from emu3_jax.interop.formats.safetensors_io import (
    CONFIG_FILE,
    SAME,
    Tensors,
    as_type,
    check_dtype,
    model_type,
    write_tensors,
)
from emu3_jax.interop.language import language_config, language_model
from emu3_jax.interop.vision import tokenizer_files, vision_config

# Pixel limits: beside a vision tokenizer in both layouts; in -hf also beside the whole model.
PREPROCESSOR_FILE = "preprocessor_config.json"
# Files of one layout alone: tokenizers, the code on the hub, model cards.
BESIDE = (".json", ".jinja", ".md", ".model", ".py", ".tiktoken", ".txt")
WRITTEN = (CONFIG_FILE, language_config.GENERATION_FILE)

Named = Iterator[tuple[str, np.ndarray]]


def has_language_model(path: str | os.PathLike) -> bool:
    """Whether a directory of either layout holds a language model."""
    return model_type(path) in ("Emu3", *language_config.HF_MODEL_TYPES)


def has_vision_tokenizer(path: str | os.PathLike) -> bool:
    """Whether a directory of either layout holds a vision tokenizer."""
    return model_type(path) in ("Emu3VisionVQ", *vision_config.HF_MODEL_TYPES)


def write_language_model(
    source: str | os.PathLike, path: str | os.PathLike, hf: bool, dtype: str = SAME
) -> None:
    """Writes the language model of a directory into another.

    Args:
      source: directory in either layout, a language model alone or half of a whole model.
      path: directory, created if need be.
      hf: whether to write the -hf layout, else BAAI's.
      dtype: a name in DTYPES, or SAME.

    Raises:
      ValueError: `source` is not such a directory, or the layout does not support its sizes.
    """
    config = language_config.read_transformer_config(source)
    further = language_config.read_further(source)
    text = hf_export.text_config(config, further) if hf else None
    # Alone, the names of an -hf model are BAAI's.
    tensors, name = _language_tensors(source, config, language_model.key_map(config), dtype)
    write_tensors(path, tensors)
    _copy_files(source, path, language_config.is_hf(source) == hf)
    if not hf:
        language_config.write_released(path, config, further, name)
        return
    hf_export.write_config(path, text | {"architectures": ["Emu3ForCausalLM"]}, name)
    language_config.write_generation(path, further)


def write_vision_tokenizer(
    source: str | os.PathLike, path: str | os.PathLike, hf: bool, dtype: str = SAME
) -> None:
    """Writes the vision tokenizer of a directory; arguments as `write_language_model`."""
    config = vision_config.read_tokenizer_config(source)
    section = hf_export.vq_config(config) if hf else None
    pairs = tokenizer_files.hf_key_map(config, "") if hf else tokenizer_files.key_map(config)
    tensors, name = _vision_tensors(source, config, pairs, dtype)
    write_tensors(path, tensors)
    if hf:
        hf_export.write_config(path, section | {"architectures": ["Emu3VQVAE"]}, name)
    else:
        vision_config.write_released(path, config, name)
    _copy_files(source, path, vision_config.is_hf(source) == hf)


def write_whole_model(
    language: str | os.PathLike,
    vision: str | os.PathLike,
    path: str | os.PathLike,
    dtype: str = SAME,
) -> None:
    """Writes two directories, or the halves of one, as one model in the -hf layout.

    Raises:
      ValueError: as `write_language_model`, or the ids of image tokens are unknown.
    """
    config, tokenizer_config = (
        language_config.read_transformer_config(language),
        vision_config.read_tokenizer_config(vision),
    )
    further = language_config.read_further(language)
    sections = hf_export.text_config(config, further), hf_export.vq_config(tokenizer_config)
    stored = hf_export.whole_config(*sections, _image_ids(language, tokenizer_config.codebook_size))
    text, name = _language_tensors(language, config, language_model.hf_key_map(config), dtype)
    vq_pairs = tokenizer_files.hf_key_map(tokenizer_config)
    vq, _ = _vision_tensors(vision, tokenizer_config, vq_pairs, dtype)
    write_tensors(path, itertools.chain(text, vq))
    hf_export.write_config(path, stored, name)
    language_config.write_generation(path, further)
    _copy_files(language, path, language_config.is_hf(language))
    _copy_files(vision, path, vision_config.is_hf(vision))


def _image_ids(path: str | os.PathLike, codebook_size: int) -> dict:
    """The fields of a whole model's config.json that name the ids of image tokens."""
    stored = read_json(pathlib.Path(path) / CONFIG_FILE)
    if stored.get("vocabulary_map"):
        fields = ("vocabulary_map", "image_token_id")
        return {name: stored[name] for name in fields if name in stored}
    vocab = bundle.read_vocab(path)
    return hf_export.vocabulary(vocab, vocab.placeholder(), codebook_size)


def _language_tensors(source, config, target: Sequence, dtype: str) -> tuple[Named, str]:
    """The tensors under the names of `target`, and their type for config.json."""
    check_dtype(dtype)
    tensors = Tensors(source)
    pairs = language_model.pairs_in(source, config, tensors)
    named = (
        (new.name, as_type(tensors.read(old.name), dtype))
        for old, new in zip(pairs, target, strict=True)
    )
    return named, _type_name(tensors, pairs[0].name, dtype)


def _vision_tensors(source, config, target: Sequence, dtype: str) -> tuple[Named, str]:
    """As `_language_tensors`; the shapes of projections differ between the layouts."""
    check_dtype(dtype)
    tensors = Tensors(source)
    pairs = tokenizer_files.pairs_in(source, config, tensors)

    def named():
        for old, new in zip(*map(tokenizer_files.counters, (pairs, target)), strict=True):
            known = old in tensors.shapes()
            yield new, tensors.read(old) if known else np.zeros((), np.int64)
        for old, new in zip(pairs, target, strict=True):
            array = tensors.read(old.name).reshape(new.file_shape)
            yield new.name, as_type(array, tokenizer_files.pair_dtype(new, dtype))

    typed_by = next(pair.name for pair in pairs if pair.path == tokenizer_files.TYPED_BY)
    return named(), _type_name(tensors, typed_by, dtype)


def _type_name(tensors: Tensors, name: str, dtype: str) -> str:
    return tensors.type_name(name) if dtype == SAME else dtype


def _copy_files(source: str | os.PathLike, path: str | os.PathLike, same_layout: bool) -> None:
    """Copies the files beside the weights that have a meaning in the layout of `path`."""
    for file in pathlib.Path(source).iterdir():
        own = file.name in WRITTEN or file.name.endswith(".index.json")
        beside = same_layout and file.suffix in BESIDE and not own
        if file.is_file() and (beside or file.name == PREPROCESSOR_FILE):
            shutil.copyfile(file, pathlib.Path(path) / file.name)
