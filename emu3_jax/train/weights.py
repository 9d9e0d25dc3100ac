"""Weights by path, whatever lies there: a run directory, BAAI's layout or the -hf layout.

Wherever a command or a config takes weights, it takes what these functions take. Of a run directory
(on a disk or in a bucket) the newest checkpoint is read unless a step is named, and the averaged
weights where the run keeps them.
"""

import dataclasses
import os
from typing import Any, NamedTuple

import jax

from emu3_jax import sharding, shipped
from emu3_jax.interop.bundle import Bundle, assemble, load_language
from emu3_jax.interop.exporting import LANGUAGE_MODEL, VISION_TOKENIZER
from emu3_jax.interop.language import language_model
from emu3_jax.interop.vision import tokenizer_files as vision_files
from emu3_jax.models.language.transformer import Transformer, TransformerConfig
from emu3_jax.models.vision.tokenizer import VisionTokenizer
from emu3_jax.train.initial_state import unsaved_collections
from emu3_jax.train.run import run_directory
from emu3_jax.train.run.checkpoint import is_run_directory, restore_variables
from emu3_jax.train.task import Task
from emu3_jax.train.tasks import registry


class OpenRun(NamedTuple):
    """A run directory that was read.

    Attributes:
      task: made from its config, without its data.
      variables: of the model, see `Task.model_variables`.
      label: the directory and the step, for the record.
    """

    task: Task
    variables: dict
    label: str

    def trained_model(self, kind: str) -> Any:
        """See `Task.trained_model`; ValueError where the run trains another kind."""
        if self.task.kind != kind:
            raise ValueError(
                f"{self.label} is a run of the task {self.task.config.task}, which trains a "
                f"{self.task.kind.replace('_', ' ')}; expected a {kind.replace('_', ' ')}"
            )
        return self.task.trained_model(self.variables, self.label)


def open_run(
    path: str | os.PathLike,
    step: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str | None = None,
) -> OpenRun:
    """Reads the model of a run directory, whatever its task.

    Args:
      path: the directory.
      step: checkpoint; None for the newest.
      mesh: where the weights go; None for the mesh that is set, or else the first device. No device
        ever holds more than its shards and one tensor.
      dtype: of the weights; None for the type in which they were trained.

    Raises:
      ConfigError: `path` is no run directory, or its config is none of this version's.
      CheckpointError: it holds no such checkpoint.
    """
    config = run_directory.read(path)
    task = registry.find(config.task).from_run(config, path)
    key = jax.random.key(config.run.seed)
    layout = sharding.abstract_arrays(jax.eval_shape(task.init, key), _place(mesh), dtype)
    parts = task.model_parts(layout)
    saved = {name: part for name, part in parts.items() if name not in task.unsaved}
    variables, step = restore_variables(path, saved, step)
    if task.unsaved:
        variables |= unsaved_collections(task, key, layout, task.initial_weights())
    variables = task.model_variables({name: variables[name] for name in parts})
    return OpenRun(task, variables, f"{path} at step {step}")


def _place(mesh: jax.sharding.Mesh | None) -> jax.sharding.Mesh:
    if mesh is not None:
        return mesh
    mesh = jax.sharding.get_mesh()
    return sharding.one_device() if mesh.empty else mesh


def load_language_model(
    path: str | os.PathLike,
    step: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str | None = None,
) -> tuple[Bundle, str]:
    """Reads a language model → (bundle without vision tokenizer, label for the record).

    Args:
      path: a run directory, a model directory, or the name of a shipped model.
      step: checkpoint of a run directory; None for the newest.
      mesh: where the weights go, tensor by tensor; None for the mesh that is set, or else the
        first device.
      dtype: type of weights and activations, as the official scripts take bfloat16; None keeps
        what a run trained with, and takes float32 for a model directory.

    Raises:
      ValueError: no such directory or checkpoint, or it holds something else.
    """
    path = shipped.language_model(path)
    if not is_run_directory(path):
        language = load_language(path)
        model, variables = load_transformer(path, mesh, dtype)
        return assemble(model, variables, language, where=str(path)), str(path)
    run = open_run(path, step, mesh, dtype)
    bundle = run.trained_model(LANGUAGE_MODEL)
    if dtype is not None:
        bundle = dataclasses.replace(bundle, model=_in_type(bundle.model.config, dtype))
    return bundle, run.label


def load_transformer(
    path: str | os.PathLike, mesh: jax.sharding.Mesh | None = None, dtype: str | None = None
) -> tuple[Transformer, Any]:
    """Reads a transformer's weights alone → (module, variables); no vocabulary is needed.

    Arguments and errors as `load_language_model`.
    """
    path = shipped.language_model(path)
    if is_run_directory(path):
        bundle, _ = load_language_model(path, mesh=mesh, dtype=dtype)
        return bundle.model, bundle.variables
    config, params = language_model.load(path, dtype or "float32", _place(mesh))
    model = Transformer(config) if dtype is None else _in_type(config, dtype)
    return model, {"params": params}


def _in_type(config: TransformerConfig, dtype: str) -> Transformer:
    return Transformer(dataclasses.replace(config, dtype=dtype, param_dtype=dtype))


def load_vision_tokenizer(
    path: str | os.PathLike, step: int | None = None, mesh: jax.sharding.Mesh | None = None
) -> tuple[VisionTokenizer, Any]:
    """Reads a vision tokenizer → (module, variables); arguments and errors as above."""
    path = shipped.vision_tokenizer(path)
    if is_run_directory(path):
        return open_run(path, step, mesh).trained_model(VISION_TOKENIZER)
    return vision_files.load_vision_tokenizer(path, _place(mesh))


def run_model_config(path: str | os.PathLike, kind: type) -> Any:
    """The section `model` of a run directory; ValueError where it is no `kind`."""
    config = run_directory.read(path)
    if not isinstance(config.model, kind):
        raise ValueError(
            f"{path} is a run of the task {config.task}, whose model is no {kind.__name__}"
        )
    return config.model
