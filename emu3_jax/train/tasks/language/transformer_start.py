"""Initial weights of a transformer: the section `start` of its config; without it, random weights.

A resumed run ignores the section, but its config still records where the weights came from.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from emu3_jax import shipped
from emu3_jax.config import ConfigError
from emu3_jax.data.codec.fingerprint import check_same, vision_fingerprint
from emu3_jax.data.tokens.mixture import MixtureEntry, vision_tokenizer_of
from emu3_jax.interop.bundle import Language, UnknownVocabularyError, load_language
from emu3_jax.interop.formats.onto_mesh import Path
from emu3_jax.interop.language import llama
from emu3_jax.models.language.layers import INIT_STDDEV
from emu3_jax.models.language.transformer import TransformerConfig
from emu3_jax.models.vision import quantizers
from emu3_jax.train import weights
from emu3_jax.train.tasks.language.initial_weights import InitialWeights

# Fields of the model's config that may differ between a run and the run it starts from.
FREE = (
    "vocab_size", "vocab_multiple", "dropout", "attention_dropout", "dtype", "param_dtype", "remat",
    "attention",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TransformerStart:
    """The section `start` of a transformer.

    Attributes:
      transformer: where the layers come from: a run directory (its newest checkpoint, the averaged
        weights if it keeps them), or a directory of a language model of the Llama family (Emu3
        included, in BAAI's or the -hf layout). All sizes but the vocabulary must be the same.
        "": random layers.
      shared_ids: number of first token ids that mean the same in both vocabularies. They keep their
        embedding and output vectors (151,643 ids for Qwen and the released vocabulary). -1: all,
        as in tuning; both vocabularies and all tokenizers must then be the same.
      codebook: run directory or weights of the vision tokenizer that made the data. The embedding
        and the output vector of every vision token start as random projections of its codebook
        entry, so that codes that look alike start alike. "": random, like all other tokens; as far
        as is known, Emu3 did this.
      seed: seed of the projections of codebook entries.
    """

    transformer: str = ""
    shared_ids: int = 0
    codebook: str = ""
    seed: int = 0


def initial_weights(
    start: TransformerStart,
    model: TransformerConfig,
    mixture: tuple[MixtureEntry, ...],
    language: Language,
) -> InitialWeights | None:
    """Returns the result of `Task.initial_weights`; None for random weights.

    Args:
      start: the section.
      model: config of the transformer to train.
      mixture: the data it will read.
      language: vocabulary and grammar of the data.

    Raises:
      ConfigError: settings exclude each other, or the codebook is not that of the data.
      ValueError: the weights do not fit; one message names everything that differs.
    """
    if start.shared_ids < llama.ALL:
        raise ConfigError(f"start.shared_ids must be -1 (all) or more, got {start.shared_ids}")
    if start.shared_ids and not start.transformer:
        raise ConfigError("start.shared_ids goes with start.transformer, which is empty")
    first = language.vocab.visual_start
    if start.codebook and not 0 <= start.shared_ids <= first:
        raise ConfigError(
            f"start.shared_ids={start.shared_ids} and start.codebook both set the vectors of the "
            f"vision tokens, which begin at id {first}; set start.codebook to '' to keep those of "
            "start.transformer, or lower start.shared_ids"
        )
    read = _layers(start, model, language) if start.transformer else None
    project = None
    if start.codebook:
        codebook_ND = _codebook_of_the_data(start.codebook, mixture)
        key = jax.random.key(start.seed)
        project = functools.partial(project_codebook, codebook_ND=codebook_ND, first=first, key=key)
    return InitialWeights(read, project) if read or project else None


def _layers(
    start: TransformerStart, model: TransformerConfig, language: Language
) -> Callable[[Mapping[Path, Any]], Iterator[tuple[Path, jax.Array]]]:
    """Returns `InitialWeights.read` of start.transformer; raises if it does not fit."""
    path, shared = shipped.language_model(start.transformer), start.shared_ids
    if not weights.is_run_directory(path):
        llama.check(path, model, shared)
        if shared == llama.ALL:
            shared = model.vocab_size
            _check_ids(path, language)
        return lambda params: llama.leaves(params, path, model, shared)
    found = weights.run_model_config(path, TransformerConfig)
    if shared == llama.ALL:
        shared = max(found.vocab_size, model.vocab_size)
    fields = [f.name for f in dataclasses.fields(TransformerConfig) if f.name not in FREE]
    problems = [
        f"model.{name} is {getattr(found, name)!r}, this run has {getattr(model, name)!r}"
        for name in fields
        if getattr(found, name) != getattr(model, name)
    ]
    if shared > min(found.vocab_size, model.vocab_size):
        problems.append(
            f"it has {found.vocab_size} token ids and this run {model.vocab_size}, so {shared} "
            "cannot be shared"
        )
    if problems:
        raise ConfigError(f"start.transformer={path}: {'; '.join(problems)}")
    if start.shared_ids == llama.ALL:
        _check_ids(path, language)

    return lambda params: _leaves_of_run(params, path, shared)


def _leaves_of_run(
    params: Mapping[Path, Any], path: str | os.PathLike, shared: int
) -> Iterator[tuple[Path, jax.Array]]:
    """(path, array) of the model of a run directory, each let go when the next is asked for."""
    mesh = next(iter(params.values())).sharding.mesh
    bundle, _ = weights.load_language_model(path, mesh=mesh)
    loaded = flax.traverse_util.flatten_dict(nn.unbox(bundle.variables["params"]))
    del bundle
    for name in list(loaded):
        array = loaded.pop(name)
        if name == llama.EMBEDDING:
            array = _replace_rows(params[name], array[:shared], 0, 0)
        elif name == llama.HEAD:
            array = _replace_rows(params[name], array[:, :shared], 0, 1)
        yield name, array


def _check_ids(path: str | os.PathLike, language: Language) -> None:
    """ValueError if an id of the data means something else to the model at `path`.

    Weights that do not state their vocabulary pass. Sizes of media and the text before a clip may
    change in tuning.
    """
    try:
        theirs = load_language(path)
    except UnknownVocabularyError:
        return
    pairs = {
        "vocabulary": (theirs.vocab.fingerprint, language.vocab.fingerprint),
        "text tokenizer": tuple(x.grammar.tokenizer.fingerprint for x in (theirs, language)),
        "vision tokenizer": (theirs.vision_fingerprint, language.vision_fingerprint),
    }
    for what, (first, second) in pairs.items():
        check_same(what, {f"start.transformer={path} has": first, "the data has": second})


def _codebook_of_the_data(path: str, mixture: tuple[MixtureEntry, ...]) -> np.ndarray:
    """Returns the codebook, float32 [N, D]; ValueError if the data has codes of another one."""
    module, variables = weights.load_vision_tokenizer(path)
    stated = {
        f"start.codebook={path!r} is": vision_fingerprint(module.config, variables),
        "the data was made with": vision_tokenizer_of(mixture) or "none",
    }
    check_same("vision tokenizer", stated)
    return np.asarray(quantizers.all_entries(module.config, variables["params"]))


def project_codebook(params: dict, codebook_ND: np.ndarray, first: int, key: jax.Array) -> dict:
    """Returns params with the vectors of the tokens first, first + 1, … set from codebook entries.

    Embedding and output matrix each get their own random projection of the entries minus their
    mean, scaled to the standard deviation of all other weights (INIT_STDDEV). Ratios of distances
    are roughly kept.
    """
    centred_ND = codebook_ND - codebook_ND.mean(axis=0)
    spread = np.sqrt(np.mean(np.sum(centred_ND**2, axis=1)))
    tables = (("embed", "embedding", 0), ("lm_head", "kernel", 1))
    for draw, (module, name, axis) in zip(jax.random.split(key), tables, strict=True):
        table = params[module][name]
        projection = jax.random.normal(draw, (codebook_ND.shape[1], table.shape[1 - axis]))
        rows = jnp.moveaxis(jnp.asarray(centred_ND) @ projection * (INIT_STDDEV / spread), 0, axis)
        params = {**params, module: {name: _replace_rows(table, rows, first, axis)}}
    return params


@functools.partial(jax.jit, static_argnames=("first", "axis"))
def _replace_rows(table: jax.Array, rows: jax.Array, first: int, axis: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(table, rows.astype(table.dtype), first, axis)
