"""What a fresh run begins from: the section `start` of a config. Absent: random weights.

A run that resumes never looks here, but its config keeps saying where it came from.
"""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from emu3_jax.config import ConfigError, to_dataclass
from emu3_jax.data.fingerprint import check_same, vision_fingerprint
from emu3_jax.data.mixture import vision_tokenizer_of
from emu3_jax.interop import llama, movqgan, vision_tokenizer
from emu3_jax.models import quantizers
from emu3_jax.models.layers import INIT_STDDEV
from emu3_jax.models.vision_config import COMPUTATION
from emu3_jax.train import codebook
from emu3_jax.train.initial_state import Start
from emu3_jax.train.pretrain import PretrainTask
from emu3_jax.train.vision_tokenizer import VisionTokenizerTask


@dataclasses.dataclass(frozen=True)
class TransformerStart:
    """Of a transformer.

    Attributes:
      transformer: directory of a language model of the Llama family (Emu3 among them, in BAAI's or
        the -hf layout), of the same sizes but for the vocabulary: its layers are taken. "": random
        layers.
      shared_ids: as many of its first token ids mean the same here, and keep their vectors (151,643
        between Qwen's byte pairs and the released vocabulary).
      codebook: directory of the vision tokenizer the data was made with: both vectors of every
        vision token begin as random projections of its codebook entry, so that codes that look
        alike begin alike. "": as random as all other tokens, as far as is known of Emu3.
      seed: of these projections.
    """

    transformer: str = ""
    shared_ids: int = 0
    codebook: str = ""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class VisionTokenizerStart:
    """Of a vision tokenizer; at most one of the two.

    Attributes:
      weights: directory of a vision tokenizer in a released layout, of the same config.
      movqgan: safetensors file with the weights of a MoVQGAN of the same 2-D sizes, which Emu3's
        own tokenizer began as; see interop.movqgan for the layers in time and new codes.
    """

    weights: str = ""
    movqgan: str = ""


def make_start(config: ml_collections.ConfigDict, task: object) -> Start | None:
    """From the section `start` to what the loop is given; None for random weights.

    Raises:
      ConfigError: a wrong key, settings that exclude each other, or another codebook than that of
        the data. ValueError: weights that do not fit, all named in one message.
    """
    section = config.get("start", ml_collections.ConfigDict())
    if isinstance(task, PretrainTask):
        return _transformer_start(to_dataclass(TransformerStart, section, "start"), task)
    if isinstance(task, VisionTokenizerTask):
        return _vision_tokenizer_start(to_dataclass(VisionTokenizerStart, section, "start"), task)
    raise TypeError(f"no start is known for a {type(task).__name__}")


def _transformer_start(start: TransformerStart, task: PretrainTask) -> Start | None:
    if start.shared_ids and not start.transformer:
        raise ConfigError("start.shared_ids goes with start.transformer, which is empty")
    if start.transformer:
        llama.check(start.transformer, task.config, start.shared_ids)
    codebook_ND = _codebook_of_the_data(start.codebook, task) if start.codebook else None
    if not start.transformer and codebook_ND is None:
        return None

    def begin(variables: dict) -> dict:
        params = variables["params"]
        if start.transformer:
            params = llama.load_into(params, start.transformer, task.config, start.shared_ids)
        if codebook_ND is not None:
            first = task.grammar.vocab.visual_start
            key = jax.random.key(start.seed)
            params = project_codebook(params, codebook_ND, first, key)
        return {**variables, "params": params}

    return begin


def _codebook_of_the_data(path: str | os.PathLike, task: PretrainTask) -> np.ndarray:
    """float32 [N, D]; must be that of the tokenizer whose codes the data holds."""
    config, variables = vision_tokenizer.load(path)
    stated = {
        f"start.codebook={str(path)!r} is": vision_fingerprint(config, variables),
        "the data was made with": vision_tokenizer_of(task.data.mixture) or "none",
    }
    check_same("vision tokenizer", stated)
    return np.asarray(quantizers.all_entries(config, variables["params"]))


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


def _vision_tokenizer_start(start: VisionTokenizerStart, task: VisionTokenizerTask) -> Start | None:
    if start.weights and start.movqgan:
        raise ConfigError("start.weights and start.movqgan exclude each other; set one of them")
    if start.movqgan:
        loaded = movqgan.load(start.movqgan, task.config)
    elif start.weights:
        config, loaded = vision_tokenizer.load(start.weights)
        computed = {name: getattr(task.config, name) for name in COMPUTATION}
        if dataclasses.replace(config, **computed) != task.config:
            raise ConfigError(f"start.weights has the config {config}, the run has {task.config}")
    else:
        return None

    def begin(variables: dict) -> dict:
        # What is counted while training begins anew, and so does the opponent.
        params = {**variables["params"], **loaded["params"]}
        found = {**variables, **loaded, "params": params}
        if codebook.AVERAGE in variables:
            average = codebook.care.start_average(codebook.codebook(params))
            found[codebook.AVERAGE] = average
        return found

    return begin
