"""Initialises a multimodal transformer from the layers of a text model of the Llama family.

Emu3's transformer is Llama's, so the names in the file are those of `language_model`. Only the
vocabulary differs; it is not copied, except for ids that mean the same in both.
"""

import itertools
import operator
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emu3_jax.files import read_json
from emu3_jax.interop.formats.onto_mesh import OntoMesh, Path
from emu3_jax.interop.formats.safetensors_io import CONFIG_FILE, Tensors
from emu3_jax.interop.language import language_model
from emu3_jax.interop.language.language_config import (
    CONFIG_KEYS,
    DEFAULTS,
    HF_MODEL_TYPES,
    plain_fields,
    unsupported,
)
from emu3_jax.models.language.transformer import TransformerConfig

# model_type of Emu3 in BAAI's and the -hf layout, and of other models of the family.
EMU3_TYPES = ("Emu3", *HF_MODEL_TYPES)
MODEL_TYPES = (*EMU3_TYPES, "llama", "mistral")
# Fields of config.json that must equal those of the run; vocabulary and dropout may differ.
SIZES = tuple(key for key in CONFIG_KEYS if key not in ("vocab_size", "attention_dropout"))
# shared_ids for all ids, of two vocabularies of one size.
ALL = -1
EMBEDDING, HEAD = ("embed", "embedding"), ("lm_head", "kernel")


def check(path: str | os.PathLike, config: TransformerConfig, shared_ids: int = 0) -> None:
    """ValueError that lists all reasons why the model at `path` cannot initialise this one.

    `shared_ids` may be ALL.
    """
    _open(pathlib.Path(path), config, shared_ids)


def leaves(
    params: Mapping[Path, Any],
    path: str | os.PathLike,
    config: TransformerConfig,
    shared_ids: int = 0,
) -> Iterator[tuple[Path, jax.Array]]:
    """Reads the layers and the final norm of the model at `path`, leaf by leaf.

    The vectors of shared ids are put into those of `params`; without any they are left out.

    Args:
      params: flat params of a Transformer of `config`: of the vocabulary, jax arrays on a mesh; of
        the others the dtype and the sharding of what is returned, arrays or ShapeDtypeStructs.
      path: config.json and safetensors files; for Emu3 either layout, also a whole model.
      config: config of the transformer here.
      shared_ids: number of first ids whose vectors are copied.

    Raises:
      ValueError: as `check`.
    """
    tensors, pairs = _open(pathlib.Path(path), config, shared_ids)
    embedding = next(pair.name for pair in pairs if pair.path == EMBEDDING)
    of_leaf = operator.attrgetter("path")
    for leaf, group in itertools.groupby(sorted(pairs, key=of_leaf), of_leaf):
        if leaf not in (EMBEDDING, HEAD):
            x = params[leaf]
            whole = {leaf: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)}
            destination = OntoMesh(whole)
            for pair in group:
                layer = pair.layer if leaf[0] == "layers" else None
                destination.write(leaf, layer, pair.from_file(tensors.read(pair.name)))
            yield leaf, destination.arrays.pop(leaf)
        elif shared_ids:
            (pair,) = group
            stored = pair.name if pair.name in tensors.shapes() else embedding
            rows = tensors.read(stored)[:shared_ids]
            yield leaf, _at_origin(params[leaf], rows.T if leaf == HEAD else rows)


@jax.jit
def _at_origin(table: jax.Array, part: jax.Array) -> jax.Array:
    rows, columns = part.shape
    return table.at[:rows, :columns].set(jnp.asarray(part, table.dtype))


def _open(path: pathlib.Path, config: TransformerConfig, shared_ids: int):
    """(tensors, the pairs of the transformer here), after all checks."""
    file = path / CONFIG_FILE
    stored = read_json(file)
    if stored.get("model_type") not in MODEL_TYPES:
        raise ValueError(
            f"{file}: model_type is {stored.get('model_type')!r}, expected one of "
            f"{', '.join(MODEL_TYPES)}"
        )
    found = _fields(stored)
    problems = unsupported(found)
    for key in SIZES:
        wanted = getattr(config, CONFIG_KEYS[key])
        if found.get(key) != wanted:
            problems.append(f"{key} is {found.get(key)!r}, the run has {wanted!r}")
    if shared_ids == ALL:
        shared_ids = max(found["vocab_size"], config.vocab_size)
    if shared_ids > min(found["vocab_size"], config.vocab_size):
        problems.append(
            f"it has {found['vocab_size']} token ids and the run {config.vocab_size}, "
            f"so {shared_ids} cannot be shared"
        )
    if problems:
        raise ValueError(f"{file}: {'; '.join(problems)}")
    tensors = Tensors(path)
    pairs, beside = language_model.named_pairs(path, config, tensors)
    vocabulary = (found["vocab_size"], config.hidden_size)
    expected = {
        pair.name: vocabulary if pair.path in (EMBEDDING, HEAD) else pair.file_shape
        for pair in pairs
        if pair.path != HEAD or not found.get("tie_word_embeddings")
    }
    tensors.check(expected, optional=beside)
    return tensors, pairs


def _fields(stored: dict) -> dict:
    """The fields of a config.json, with the defaults of its model type for missing ones."""
    if stored["model_type"] in EMU3_TYPES:
        return DEFAULTS | plain_fields(stored)
    heads = stored.get("num_attention_heads")
    return {"vocab_size": 0, "num_key_value_heads": heads, "rope_theta": 1e4} | plain_fields(stored)
