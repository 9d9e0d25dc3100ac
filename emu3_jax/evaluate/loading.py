"""Models by the directory they lie in: a run directory or a directory of released layout.

A run directory has config.json and checkpoints/; its newest checkpoint is taken.
"""

import os
import pathlib
from typing import Any

import jax

from emu3_jax.config import to_dataclass
from emu3_jax.interop import vision_tokenizer as vision_files
from emu3_jax.interop.bundle import Bundle, assemble, load_bundle, load_language
from emu3_jax.models.transformer import Transformer, TransformerConfig
from emu3_jax.models.vision_tokenizer import VisionTokenizer, VisionTokenizerConfig
from emu3_jax.train.checkpoint import CHECKPOINT_FOLDER, restore_for_evaluation


def is_run_directory(path: str | os.PathLike) -> bool:
    """Whether `path` holds checkpoints of a run."""
    return (pathlib.Path(path) / CHECKPOINT_FOLDER).is_dir()


def load_model(
    path: str | os.PathLike, step: int | None = None, mesh: jax.sharding.Mesh | None = None
) -> tuple[Bundle, str]:
    """Reads a language model → (bundle without vision tokenizer, label for the record).

    Args:
      path: a run directory of the task pretrain, or a model directory.
      step: checkpoint of a run directory; None for the newest.
      mesh: where the weights of a model directory go at once (see `load_bundle`).

    Raises:
      ValueError: no such directory or checkpoint, or it holds something else.
    """
    if not is_run_directory(path):
        return load_bundle(path, mesh=mesh), str(path)
    config, params, _, step = restore_for_evaluation(path, step)
    _check_task(path, config, "pretrain")
    language = load_language(path)
    values = {"vocab_size": language.vocab.size} | config.model.to_dict()
    model = Transformer(to_dataclass(TransformerConfig, values, "model"))
    bundle = assemble(model, {"params": params}, language, where=str(path))
    return bundle, f"{path} at step {step}"


def load_vision_tokenizer(
    path: str | os.PathLike, step: int | None = None
) -> tuple[VisionTokenizer, Any]:
    """Reads a vision tokenizer → (module, variables); arguments as `load_model`."""
    if not is_run_directory(path):
        config, variables = vision_files.load(path)
        return VisionTokenizer(config), variables
    config, params, state, _ = restore_for_evaluation(path, step)
    _check_task(path, config, "vision_tokenizer")
    module = VisionTokenizer(to_dataclass(VisionTokenizerConfig, config.model, "model"))
    return module, {"params": params, "batch_stats": state["batch_stats"]}


def _check_task(path, config, expected: str) -> None:
    if config.task != expected:
        raise ValueError(f"{path} is a run of the task {config.task}; expected {expected}")
