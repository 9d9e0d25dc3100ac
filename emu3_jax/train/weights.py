"""Loads weights by path: a run directory, or a directory in BAAI's or the -hf layout.

Every command and config that takes weights uses these functions. From a run directory, on a disk or
in a bucket, they read the newest checkpoint unless a step is given, and the averaged weights if the
run keeps them.
"""

import dataclasses
import os
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from emu3_jax import sharding, shipped
from emu3_jax.interop.bundle import Bundle, assemble, load_language
from emu3_jax.interop.exporting import LANGUAGE_MODEL, VISION_TOKENIZER
from emu3_jax.interop.language import language_model
from emu3_jax.interop.vision import tokenizer_files as vision_files
from emu3_jax.interop.vision.vision_config import read_tokenizer_config
from emu3_jax.models.language.transformer import Transformer, TransformerConfig
from emu3_jax.models.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig
from emu3_jax.sharding import MeshConfig
from emu3_jax.train.initial_state import unsaved_collections
from emu3_jax.train.run import run_directory
from emu3_jax.train.run.checkpoint import is_run_directory, restore_variables
from emu3_jax.train.task import Task
from emu3_jax.train.tasks import registry


class OpenRun(NamedTuple):
    """The model of a run directory.

    Attributes:
      task: made from the run's config, without its data.
      variables: the result of `Task.model_variables`.
      label: the directory and the step, for results and messages.
    """

    task: Task
    variables: dict
    label: str

    def trained_model(self, kind: str) -> Any:
        """Returns `Task.trained_model`; ValueError if the run trains another kind of model."""
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
    """Reads the model of a run directory of any task.

    Args:
      path: the run directory.
      step: step of the checkpoint; None for the newest.
      mesh: mesh to load onto; None for the current mesh, or the first device if none is set. No
        device holds more than its shards and one tensor at any time.
      dtype: dtype of the weights; None keeps the dtype they were trained in.

    Raises:
      ConfigError: `path` is not a run directory, or this version cannot read its config.
      CheckpointError: there is no such checkpoint, or its arrays do not fit the config.
    """
    config = run_directory.read(path)
    task = registry.find_for(config).from_run(config, path)
    key = jax.random.key(config.run.seed)
    layout = sharding.abstract_arrays(jax.eval_shape(task.init, key), _place(mesh), dtype)
    parts = task.model_parts(layout)
    saved = {name: part for name, part in parts.items() if name not in task.unsaved}
    variables, step = restore_variables(path, saved, step)
    if parts.keys() & set(task.unsaved):
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
    quantized: bool = False,
) -> tuple[Bundle, str]:
    """Reads a language model → (bundle without vision tokenizer, label).

    Args:
      path: a run directory, a model directory, or the name of a shipped model.
      step: step of a run directory's checkpoint; None for the newest.
      mesh: mesh to load onto, tensor by tensor; None for the current mesh, or the first device if
        none is set.
      dtype: dtype of weights and activations (the official scripts use bfloat16). None means
        float32 for a model directory; for a run, the dtypes it trained with.
      quantized: the kernels of the layers become int8 (`models.language.int8`), one by one, so that
        no device holds the model as floats. A checkpoint is read on the host first; with several
        processes, on the mesh.

    Returns:
      The bundle, and where the weights came from, for results and messages.

    Raises:
      ValueError: there is no such directory or checkpoint, it holds no language model, or its
        weights are to be quantized and are so already.
    """
    path = shipped.language_model(path)
    if not is_run_directory(path):
        language = load_language(path)
        model, variables = _read_transformer(path, mesh, dtype, quantized)
        return assemble(model, variables, language, where=str(path)), str(path)
    run = open_run(path, step, _host(mesh) if quantized else mesh, dtype)
    bundle = run.trained_model(LANGUAGE_MODEL)
    if dtype is not None:
        bundle = dataclasses.replace(bundle, model=_in_type(bundle.model.config, dtype))
    if quantized:
        params = nn.unbox(bundle.variables["params"])
        params = language_model.quantized(bundle.model.config, params, _place(mesh))
        bundle = dataclasses.replace(bundle, variables={"params": params})
    return bundle, run.label


def _host(mesh: jax.sharding.Mesh | None) -> jax.sharding.Mesh | None:
    """A mesh of a CPU of this process, if there is no other process."""
    if jax.process_count() > 1:
        return mesh
    return sharding.make_mesh(MeshConfig(), jax.local_devices(backend="cpu")[:1])


def load_transformer(
    path: str | os.PathLike, mesh: jax.sharding.Mesh | None = None, dtype: str | None = None
) -> tuple[Transformer, Any]:
    """Reads a transformer's weights → (module, variables).

    Unlike `load_language_model`, this needs no vocabulary in a model directory. Arguments and
    errors are the same.
    """
    path = shipped.language_model(path)
    if is_run_directory(path):
        bundle, _ = load_language_model(path, mesh=mesh, dtype=dtype)
        return bundle.model, bundle.variables
    return _read_transformer(path, mesh, dtype)


def _read_transformer(path, mesh, dtype: str | None, quantized: bool = False):
    """(module, variables) of a model directory."""
    config, params = language_model.load(path, dtype or "float32", _place(mesh), quantized)
    model = Transformer(config) if dtype is None else _in_type(config, dtype)
    return model, {"params": params}


def _in_type(config: TransformerConfig, dtype: str) -> Transformer:
    return Transformer(dataclasses.replace(config, dtype=dtype, param_dtype=dtype))


def load_vision_tokenizer(
    path: str | os.PathLike, step: int | None = None, mesh: jax.sharding.Mesh | None = None
) -> tuple[VisionTokenizer, Any]:
    """Reads a vision tokenizer → (module, variables).

    Args:
      path: a run directory, a directory of weights, or the name of a shipped tokenizer.
      step: step of a run directory's checkpoint; None for the newest.
      mesh: mesh to load onto; None for the current mesh, or the first device if none is set.

    Raises:
      ValueError: there is no such directory or checkpoint, or it holds no vision tokenizer.
    """
    path = shipped.vision_tokenizer(path)
    if is_run_directory(path):
        return open_run(path, step, mesh).trained_model(VISION_TOKENIZER)
    return vision_files.load_module(path, _place(mesh))


def vision_config(path: str | os.PathLike) -> VisionTokenizerConfig:
    """The config of what `load_vision_tokenizer` loads; no weights are read if a file states it."""
    path = shipped.vision_tokenizer(path)
    if not is_run_directory(path):
        return read_tokenizer_config(path)
    stated = getattr(run_directory.read(path), "model", None)
    if isinstance(stated, VisionTokenizerConfig):
        return stated
    return load_vision_tokenizer(path)[0].config  # a task that makes its tokenizer of other parts


def run_model_config(path: str | os.PathLike, kind: type) -> Any:
    """Returns the section `model` of a run's config; ValueError if it is not a `kind`."""
    config = run_directory.read(path)
    if not isinstance(config.model, kind):
        raise ValueError(
            f"{path} is a run of the task {config.task}, whose model is no {kind.__name__}"
        )
    return config.model
