"""Models by the directory they lie in: a run directory or a directory of released layout.

A run directory has config.json and checkpoints/; its newest checkpoint is taken.
"""

import dataclasses
import os
from typing import Any

import jax

from emu3_jax import sharding
from emu3_jax.config import is_run_directory, to_dataclass
from emu3_jax.interop import language_model
from emu3_jax.interop import vision_tokenizer as vision_files
from emu3_jax.interop.bundle import Bundle, assemble, load_language
from emu3_jax.models.transformer import Transformer, TransformerConfig
from emu3_jax.models.vision_tokenizer import VisionTokenizer, VisionTokenizerConfig
from emu3_jax.train.checkpoint import restore_for_evaluation
from emu3_jax.train.vision_objective import tokenizer_params


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
      mesh: where the weights of a model directory go, tensor by tensor, so that the host never
        holds them all; None for the first device, where those of a run always go.
      dtype: type of weights and activations, as the official scripts take bfloat16; None keeps
        what a run trained with, and takes float32 for a model directory.

    Raises:
      ValueError: no such directory or checkpoint, or it holds something else.
    """
    language = load_language(path)
    if not is_run_directory(path):
        mesh = mesh or sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
        config, params = language_model.load(path, dtype or "float32", mesh)
        label = str(path)
    else:
        run, params, _, step = restore_for_evaluation(path, step)
        _check_task(path, run, "pretrain")
        values = {"vocab_size": language.vocab.size} | run.model.to_dict()
        config = to_dataclass(TransformerConfig, values, "model")
        label = f"{path} at step {step}"
    if dtype is not None:
        config = dataclasses.replace(config, dtype=dtype, param_dtype=dtype)
        params = jax.tree.map(lambda weight: weight.astype(dtype), params)
    return assemble(Transformer(config), {"params": params}, language, where=str(path)), label


def load_vision_tokenizer(
    path: str | os.PathLike, step: int | None = None
) -> tuple[VisionTokenizer, Any]:
    """Reads a vision tokenizer → (module, variables on the host); arguments as `load_model`."""
    if not is_run_directory(path):
        config, variables = vision_files.load(path)
        return VisionTokenizer(config), variables
    config, params, state, _ = restore_for_evaluation(path, step)
    _check_task(path, config, "vision_tokenizer")
    module = VisionTokenizer(to_dataclass(VisionTokenizerConfig, config.model, "model"))
    variables = {"params": tokenizer_params(params), "batch_stats": state["batch_stats"]}
    return module, jax.device_get(variables)  # for any mesh: a run's are bound to one device


def _check_task(path, config, expected: str) -> None:
    if config.task != expected:
        raise ValueError(f"{path} is a run of the task {config.task}; expected {expected}")
