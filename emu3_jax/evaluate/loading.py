"""Models by the directory they lie in: a run directory or a directory of released layout.

A run directory has config.json and checkpoints/; its newest checkpoint is taken.
"""

import dataclasses
import os
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from emu3_jax import sharding
from emu3_jax.config import read_config, to_dataclass
from emu3_jax.interop import language_model
from emu3_jax.interop import vision_tokenizer as vision_files
from emu3_jax.interop.bundle import Bundle, assemble, load_language
from emu3_jax.models.transformer import Transformer, TransformerConfig
from emu3_jax.models.vision_tokenizer import VisionTokenizer, VisionTokenizerConfig
from emu3_jax.train.checkpoint import CHECKPOINT_FOLDER, restore_variables


def is_run_directory(path: str | os.PathLike) -> bool:
    """Whether `path` holds checkpoints of a run."""
    return (epath.Path(path) / CHECKPOINT_FOLDER).is_dir()


def load_model(
    path: str | os.PathLike,
    step: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str | None = None,
) -> tuple[Bundle, str]:
    """Reads a language model → (bundle without vision tokenizer, label for the record).

    Args:
      path: a run directory of the task pretrain, or a model directory.
      step: checkpoint of a run directory; None for the newest.
      mesh: where the weights go, by the rules of `sharding`, without ever lying whole on the host
        or on one device; None for the first device.
      dtype: type of weights and activations, as the official scripts take bfloat16; None keeps
        what a run trained with, and takes float32 for a model directory.

    Raises:
      ValueError: no such directory or checkpoint, or it holds something else; or a size that the
        mesh does not divide.
    """
    language = load_language(path)
    mesh = mesh or sharding.one_device()
    if not is_run_directory(path):
        config, params = language_model.load(path, dtype or "float32", mesh)
        label = str(path)
    else:
        run = read_run(path, "pretrain")
        values = {"vocab_size": language.vocab.size} | run.model.to_dict()
        config = to_dataclass(TransformerConfig, values, "model")
        abstract = language_model.abstract_variables(config)
        wanted = sharding.abstract_arrays(abstract, mesh, dtype)
        variables, step = restore_variables(path, wanted, step)
        params, label = variables["params"], f"{path} at step {step}"
    if dtype is not None:
        config = dataclasses.replace(config, dtype=dtype, param_dtype=dtype)
    return assemble(Transformer(config), {"params": params}, language, where=str(path)), label


def load_vision_tokenizer(
    path: str | os.PathLike,
    step: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[VisionTokenizer, Any]:
    """Reads a vision tokenizer → (module, variables); arguments and errors as `load_model`."""
    mesh = mesh or sharding.one_device()
    if not is_run_directory(path):
        return vision_files.load_vision_tokenizer(path, mesh)
    run = read_run(path, "vision_tokenizer")
    config = to_dataclass(VisionTokenizerConfig, run.model, "model")
    wanted = sharding.abstract_arrays(vision_files.abstract_variables(config), mesh)
    variables, _ = restore_variables(path, wanted, step)
    return VisionTokenizer(config), variables


def read_run(path: str | os.PathLike, task: str) -> ConfigDict:
    """The config of a run directory; ValueError if it is a run of another task."""
    config = read_config(path)
    if config.task != task:
        raise ValueError(f"{path} is a run of the task {config.task}; expected {task}")
    return config
