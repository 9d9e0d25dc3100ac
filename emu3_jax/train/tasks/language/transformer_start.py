"""What a transformer begins as: the section `start` of its config. Absent: random weights.

A run that resumes does not look here, but its config keeps saying where it came from.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from emu3_jax import shipped
from emu3_jax.config import ConfigError
from emu3_jax.data.codec.fingerprint import check_same, vision_fingerprint
from emu3_jax.data.tokens.mixture import MixtureEntry, vision_tokenizer_of
from emu3_jax.interop.bundle import Language
from emu3_jax.interop.language import llama
from emu3_jax.models.language.layers import INIT_STDDEV
from emu3_jax.models.language.transformer import TransformerConfig
from emu3_jax.models.vision import quantizers
from emu3_jax.train import weights

# Fields of a model's config that may differ between a run and the one it begins from.
FREE = (
    "vocab_size", "vocab_multiple", "dropout", "attention_dropout", "dtype", "param_dtype", "remat",
    "attention",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TransformerStart:
    """The section `start` of a transformer.

    Attributes:
      transformer: a run directory of ours (its newest checkpoint, the averaged weights where it
        keeps them), or a directory of a language model of the Llama family (Emu3 among them, in
        BAAI's or the -hf layout), of the same sizes but for the vocabulary: its layers are taken.
        "": random layers.
      shared_ids: as many of its first token ids mean the same here, and keep their vectors (151,643
        between Qwen's byte pairs and the released vocabulary).
      codebook: run directory or weights of the vision tokenizer that the data was made with: both
        vectors of every vision token begin as random projections of its codebook entry, so that
        codes that look alike begin alike. "": as random as all other tokens, as far as is known of
        Emu3.
      seed: of the projections of codebook entries.
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
) -> Callable[[dict], dict] | None:
    """What the section asks for, as `Task.initial_weights`; None for random weights.

    Args:
      start: the section.
      model: of the transformer that begins.
      mixture: the data it will read.
      language: of these data.

    Raises:
      ConfigError: settings that exclude each other, or another codebook than that of the data.
      ValueError: weights that do not fit; one message names everything that differs.
    """
    if start.shared_ids and not start.transformer:
        raise ConfigError("start.shared_ids goes with start.transformer, which is empty")
    first = language.vocab.visual_start
    if start.codebook and start.shared_ids > first:
        raise ConfigError(
            f"start.shared_ids={start.shared_ids} and start.codebook both set the vectors of the "
            f"vision tokens, which begin at id {first}; set start.codebook to '' to keep those of "
            "start.transformer, or lower start.shared_ids"
        )
    take = _layers(start, model) if start.transformer else None
    codebook_ND = _codebook_of_the_data(start.codebook, mixture) if start.codebook else None
    if take is None and codebook_ND is None:
        return None

    def begin(variables: dict) -> dict:
        params = variables["params"]
        if take is not None:
            params = take(params)
        if codebook_ND is not None:
            params = project_codebook(params, codebook_ND, first, jax.random.key(start.seed))
        return {**variables, "params": params}

    return begin


def _layers(start: TransformerStart, model: TransformerConfig) -> Callable[[dict], dict]:
    """A function from params to params with what start.transformer has; checks that it fits."""
    path, shared = shipped.language_model(start.transformer), start.shared_ids
    if not weights.is_run_directory(path):
        llama.check(path, model, shared)
        return lambda params: llama.load_into(params, path, model, shared)
    found = weights.run_model_config(path, TransformerConfig)
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

    def take(params: dict) -> dict:
        params = flax.traverse_util.flatten_dict(nn.unbox(params))
        mesh = next(iter(params.values())).sharding.mesh
        bundle, _ = weights.load_language_model(path, mesh=mesh)
        loaded = flax.traverse_util.flatten_dict(nn.unbox(bundle.variables["params"]))
        for name, array in loaded.items():
            if name == llama.EMBEDDING:
                params[name] = _replace_rows(params[name], array[:shared], 0, 0)
            elif name == llama.HEAD:
                params[name] = _replace_rows(params[name], array[:, :shared], 0, 1)
            else:
                params[name] = array
        return flax.traverse_util.unflatten_dict(params)

    return take


def _codebook_of_the_data(path: str, mixture: tuple[MixtureEntry, ...]) -> np.ndarray:
    """float32 [N, D]; must be that of the tokenizer whose codes the data holds."""
    module, variables = weights.load_vision_tokenizer(path)
    stated = {
        f"start.codebook={path!r} is": vision_fingerprint(module.config, variables),
        "the data was made with": vision_tokenizer_of(mixture) or "none",
    }
    check_same("vision tokenizer", stated)
    return np.asarray(quantizers.all_entries(module.config, variables["params"]))


def project_codebook(params: dict, codebook_ND: np.ndarray, first: int, key: jax.Array) -> dict:
    """The params with both vectors of the tokens first, first + 1, … made from codebook entries.

    Each matrix gets its own random projection of the entries about their mean, scaled to the
    standard deviation of all other weights: distances keep their proportions, about.
    """
    centred_ND = codebook_ND - codebook_ND.mean(axis=0)
    spread = np.sqrt(np.mean(np.sum(centred_ND**2, axis=1)))
    places = (("embed", "embedding", 0), ("lm_head", "kernel", 1))
    for draw, (module, name, axis) in zip(jax.random.split(key), places, strict=True):
        table = params[module][name]
        projection = jax.random.normal(draw, (codebook_ND.shape[1], table.shape[1 - axis]))
        rows = jnp.moveaxis(jnp.asarray(centred_ND) @ projection * (INIT_STDDEV / spread), 0, axis)
        params = {**params, module: {name: _replace_rows(table, rows, first, axis)}}
    return params


@functools.partial(jax.jit, static_argnames=("first", "axis"))
def _replace_rows(table: jax.Array, rows: jax.Array, first: int, axis: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(table, rows.astype(table.dtype), first, axis)
