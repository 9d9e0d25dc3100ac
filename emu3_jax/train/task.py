"""What a task is: everything that is specific to one kind of training, in one class.

The loop, checkpoints, evaluation, export and ahead-of-time compilation go through this interface
and know no task by name. A new task is a module with one such class, and a line in
`tasks/registry.py` (or no line: a config may name the class by its import path).
"""

import abc
import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import flax
import jax
import optax
from jax.sharding import Mesh

from emu3_jax.config import to_dataclass
from emu3_jax.data.batches import Batches
from emu3_jax.train.optimizer import OptimizerConfig, make_optimizer

Tree = Any


class Loss(NamedTuple):
    """What a task's loss returns for one (micro)batch.

    The loss that is minimised is total / weight, summed over micro-batches before the division,
    so that accumulation over unequal micro-batches equals the whole batch exactly.

    Attributes:
      total: float32 scalar, weighted sum of losses.
      weight: float32 scalar, sum of weights.
      metrics: name → (sum, count), float32 scalars; reported as sum / count.
      model_state: the collections other than "params" after the call (BatchNorm statistics…).
    """

    total: jax.Array
    weight: jax.Array
    metrics: dict[str, tuple[jax.Array, jax.Array]]
    model_state: Tree


class TrainState(flax.struct.PyTreeNode):
    """Everything that training changes.

    Attributes:
      step: int32 scalar, number of updates done.
      params: trained weights, in the master dtype.
      model_state: collections that are not trained by gradients.
      opt_state: optax state, sharded as the parameters.
      ema: moving average of the parameters in float32, or None.
    """

    step: jax.Array
    params: Tree
    model_state: Tree
    opt_state: Tree
    ema: Tree | None

    def evaluation_params(self) -> Tree:
        """The averaged weights where they are kept, else the trained ones."""
        return self.params if self.ema is None else self.ema


class Task(abc.ABC):
    """One kind of training.

    Attributes:
      Config: frozen dataclass of a whole config: `task`, `run` (a RunConfig), `evaluation`, and the
        sections of this task.
      unit: what throughput counts ("tokens", "frames").
      unsaved: collections of the model state that checkpoints leave out, since `init` and
        `initial_weights` make them again when a run resumes (a frozen base, for instance).
      kind: the kind of model that is trained: "language_model", "vision_tokenizer", or another.
      config: the resolved config.
      note: printed when a run begins, beside its sizes; "" for nothing.
    """

    Config: ClassVar[type]
    unit: ClassVar[str]
    kind: ClassVar[str]
    unsaved: ClassVar[tuple[str, ...]] = ()
    config: Any
    note: str = ""

    # From a config.

    @classmethod
    def resolve(cls, values: Mapping[str, Any], run_directory: os.PathLike | None = None) -> Any:
        """The config with every field, from stated values.

        Args:
          values: what a config file or a run directory's config.json states.
          run_directory: where `values` come from, if they do; what else the task needs to complete
            them is then read there and not from the data.

        Returns:
          An instance of `Config`.

        Raises:
          ConfigError: a wrong key or type, or a missing one, by name.
        """
        del run_directory
        return to_dataclass(cls.Config, values)

    @abc.abstractmethod
    def __init__(self, config: Any, read_data: bool = True):
        """The task of a resolved config.

        Args:
          config: an instance of `Config`.
          read_data: False for a task that is only compiled, or whose model is only loaded: its
            data and other files need not exist.
        """

    @classmethod
    def from_run(cls, config: Any, run_directory: os.PathLike) -> "Task":
        """The task of a run directory, for its model alone; reads none of its training data."""
        del run_directory
        return cls(config, read_data=False)

    # The model and its training.

    @abc.abstractmethod
    def init(self, key: jax.Array) -> Tree:
        """Returns variables {"params": …, other collections}, boxed with logical axis names."""

    def initial_weights(self) -> Callable[[dict], dict] | None:
        """What a fresh run begins from instead of random weights; None for these.

        Called before anything is written, so it refuses what cannot be used.

        Returns:
          A function from the variables as initialised, arrays on the mesh in use, to the same tree
          with other values: these, jax arrays laid out in any way, or numpy arrays.
        """
        return None

    def optimizer(
        self, config: OptimizerConfig, steps: int
    ) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """The transformation of the params' gradients, and the learning rate that is reported."""
        return make_optimizer(config, steps)

    @abc.abstractmethod
    def loss(
        self, params: Tree, model_state: Tree, batch: dict, key: jax.Array, step: jax.Array
    ) -> Loss:
        """Pure function of its arguments; called inside jit. `step`: int32, updates done so far."""

    def gradient_parts(self, gradients: Tree) -> dict[str, Tree]:
        """Parts of the gradient whose norms are logged apart, as gradient_norm/<name>."""
        del gradients
        return {}

    def after_update(self, state: TrainState, batch: dict, key: jax.Array) -> TrainState:
        """Pure hook after the optimizer (for instance dead-code revival); inside jit."""
        del batch, key
        return state

    # Its data.

    @abc.abstractmethod
    def batches(self, mesh: Mesh) -> Batches:
        """Batches of the rows that this process feeds; ValueError for data that does not fit."""

    @abc.abstractmethod
    def abstract_batch(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and shardings of a global batch, read from no data.

        ValueError for a mesh that the model or the batch does not fit.
        """

    def batch_shardings(self, mesh: Mesh) -> dict[str, jax.sharding.Sharding]:
        """Name of an array of a batch → its sharding."""
        return {name: array.sharding for name, array in self.abstract_batch(mesh).items()}

    @abc.abstractmethod
    def units_per_batch(self) -> int:
        """Work in one batch, in `unit`s, for the throughput line."""

    def flops_per_unit(self) -> float:
        """Model FLOPs of one `unit`, forward and backward; 0 where they are not counted."""
        return 0.0

    # What becomes of it.

    def save_beside(self, run_directory: os.PathLike) -> None:
        """Writes what a run directory needs beside config and checkpoints to be used."""
        del run_directory

    def check_beside(self, run_directory: os.PathLike) -> None:
        """Refuses to go on where what `save_beside` wrote means something else than what it would
        write now; ValueError names both."""
        del run_directory

    def model_parts(self, variables: dict) -> dict:
        """Of all variables, those that the evaluated and exported model is made of.

        Args:
          variables: as `init` returns them, abstract or not. Parts of a checkpoint that are left
            out here are not read when the model is loaded.
        """
        return variables

    def model_variables(self, parts: dict) -> dict:
        """The variables of the evaluated and exported model, from its parts."""
        return parts

    @abc.abstractmethod
    def trained_model(self, variables: dict, label: str) -> Any:
        """The model as generation and evaluation take it.

        Args:
          variables: from `model_variables`, on any mesh.
          label: where they came from, for messages.

        Returns:
          For a "language_model" an interop.bundle.Bundle, for a "vision_tokenizer" (module,
          variables), for another kind what its own evaluators take.
        """

    @abc.abstractmethod
    def export(self, folder: os.PathLike, variables: dict, options: Any) -> None:
        """Writes the trained model as a directory of weights.

        Args:
          folder: exists and is empty.
          variables: from `model_variables`.
          options: an interop.exporting.ExportOptions.
        """

    # Programs that can be compiled ahead of time beside the update itself.

    def programs(self) -> Mapping[str, Any]:
        """Name → a train.program.Program, for `python -m emu3_jax.aot --program=NAME`."""
        return {}

    def with_layers(self, num_layers: int) -> Any:
        """The config with so many layers and no loop over anything, where the model is a stack of
        equal layers and time can be extrapolated from few; None where it is not."""
        del num_layers
        return None
