"""The interface of a task: one class holds all that is specific to one kind of training.

The loop, checkpoints, evaluation, export and ahead-of-time lowering use only this interface; none
of them names a task. A new task is one module with one subclass of `Task`, and one line in
`tasks/registry.py`. Without that line, a config can still name the class by its import path.
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
    """The result of `Task.loss` for one batch or micro-batch.

    Training minimises total / weight. Both are summed over the micro-batches before the division,
    so accumulation over micro-batches of unequal weight gives the loss of the whole batch
    (`run.accumulated_mean` states otherwise).

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
    """All arrays that a training step reads and returns.

    Attributes:
      step: int32 scalar, number of updates done.
      params: trained weights, in the master dtype.
      model_state: name → collection, those that gradients do not train.
      opt_state: optax state; moments are sharded as their parameters.
      ema: moving average of the parameters in float32, or None.
    """

    step: jax.Array
    params: Tree
    model_state: Tree
    opt_state: Tree
    ema: Tree | None

    def evaluation_params(self) -> Tree:
        """The averaged weights if the run keeps them, else the trained weights."""
        return self.params if self.ema is None else self.ema


class Task(abc.ABC):
    """One kind of training.

    Attributes:
      Config: frozen dataclass of the whole config: `task`, `run` (a RunConfig), `evaluation`, and
        the sections of this task.
      unit: what throughput counts, in the plural ("tokens", "frames").
      kind: kind of the trained model: "language_model", "vision_tokenizer", or a new name.
        Evaluators of the same kind (`Evaluator.measures`) can measure it.
      headline: patterns of the metrics in the log lines, in order (`train.run.readable`).
      unsaved: collections of the model state that checkpoints leave out, such as a frozen base.
        `init` and `initial_weights` make them again when a run resumes.
      config: the resolved config, an instance of `Config`.
      note: printed when a run begins; "" prints nothing.
    """

    Config: ClassVar[type]
    unit: ClassVar[str]
    kind: ClassVar[str]
    headline: ClassVar[tuple[str, ...]] = ("loss*",)
    unsaved: ClassVar[tuple[str, ...]] = ()
    config: Any
    note: str = ""

    # From a config.

    @classmethod
    def resolve(cls, values: Mapping[str, Any], run_directory: os.PathLike | None = None) -> Any:
        """Returns the config with every field set.

        Args:
          values: the keys that a config file or a run directory's config.json sets.
          run_directory: the run directory that holds `values`, or None. If given, missing values
            that defaults cannot supply are read from it instead of from the data.

        Returns:
          An instance of `Config`.

        Raises:
          ConfigError: an unknown key, a missing key or a value of the wrong type; the message
            names the key.
        """
        del run_directory
        return to_dataclass(cls.Config, values)

    @abc.abstractmethod
    def __init__(self, config: Any, read_data: bool = True):
        """Makes the task from a resolved config.

        Args:
          config: an instance of `Config`.
          read_data: False if the task is only lowered or only loads a model. Its data and other
            input files then need not exist.
        """

    @classmethod
    def from_run(cls, config: Any, run_directory: os.PathLike) -> "Task":
        """Makes the task of a run directory to load its model; reads no training data.

        Args:
          config: the resolved config of the run.
          run_directory: where `save_beside` wrote.
        """
        del run_directory
        return cls(config, read_data=False)

    # The model and its training.

    @abc.abstractmethod
    def init(self, key: jax.Array) -> Tree:
        """Returns initial variables {"params": …, other collections}; called inside jit.

        Arrays are boxed with logical axis names (`nn.LogicallyPartitioned`); `emu3_jax.sharding`
        turns the names into shardings.
        """

    def initial_weights(self) -> Callable[[dict], dict] | None:
        """Returns a function that replaces the random weights of a fresh run; None keeps them.

        The loop calls this before it writes anything, so weights that do not fit must raise here.
        With `unsaved` collections it is called for resumed runs and loaded models too.

        Returns:
          A function from the variables that `init` made, arrays on the current mesh, to a tree of
          the same structure and shapes. Its leaves may be the given arrays, jax arrays of any
          sharding, or numpy arrays.

        Raises:
          ValueError: the weights cannot be read or do not fit.
        """
        return None

    def optimizer(
        self, config: OptimizerConfig, steps: int
    ) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """Returns (gradient transformation of the params, schedule of the logged learning rate)."""
        return make_optimizer(config, steps)

    @abc.abstractmethod
    def loss(
        self, params: Tree, model_state: Tree, batch: dict, key: jax.Array, step: jax.Array
    ) -> Loss:
        """Returns the loss of one batch or micro-batch: a pure function, called inside jit.

        Args:
          params, model_state: as in `TrainState`.
          batch: name → array, as `abstract_batch`; of a micro-batch, a share of the rows.
          key: random key of this step and micro-batch.
          step: int32 scalar, number of updates done.
        """

    def gradient_parts(self, gradients: Tree) -> dict[str, Tree]:
        """Returns name → part of the gradient; each norm is logged as gradient_norm/<name>."""
        del gradients
        return {}

    def after_update(self, state: TrainState, batch: dict, key: jax.Array) -> TrainState:
        """Returns the state after the optimizer's update, changed further if the task needs it.

        A pure function, called inside jit; dead-code revival is an example. `state.step` is still
        the number of updates before this one.
        """
        del batch, key
        return state

    # Its data.

    @abc.abstractmethod
    def batches(self, mesh: Mesh) -> Batches:
        """Returns the batches of this process: its rows of each global batch.

        Raises:
          ValueError: data or mesh do not fit the config.
        """

    @abc.abstractmethod
    def abstract_batch(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns name → shape, dtype and sharding of a global batch; reads no data.

        Raises:
          ValueError: the model or the batch does not fit the mesh.
        """

    def batch_shardings(self, mesh: Mesh) -> dict[str, jax.sharding.Sharding]:
        """Returns name → sharding of each array of a batch."""
        return {name: array.sharding for name, array in self.abstract_batch(mesh).items()}

    @abc.abstractmethod
    def units_per_batch(self) -> int:
        """Returns how many times `unit` is in one global batch, for throughput."""

    def flops_per_unit(self) -> float:
        """Returns the model FLOPs of one `unit`, forward and backward; 0 if not counted."""
        return 0.0

    # The trained model.

    def save_beside(self, run_directory: os.PathLike) -> None:
        """Writes files that loading the model needs beside config and checkpoints.

        The first process calls it at every start of a run.
        """
        del run_directory

    def check_beside(self, run_directory: os.PathLike) -> None:
        """Refuses to go on where what `save_beside` wrote means something else than what it would
        write now; ValueError names both."""
        del run_directory

    def model_parts(self, variables: dict) -> dict:
        """Returns the subset of the variables that the evaluated and exported model consists of.

        Loading a model reads only this subset of a checkpoint.

        Args:
          variables: the tree of `init`, of arrays or of ShapeDtypeStructs.
        """
        return variables

    def model_variables(self, parts: dict) -> dict:
        """Returns the variables of the evaluated and exported model.

        Override it if the model is not its parts unchanged (adapters merged into a base).

        Args:
          parts: the tree of `model_parts`, arrays; params are `TrainState.evaluation_params`.
        """
        return parts

    @abc.abstractmethod
    def trained_model(self, variables: dict, label: str) -> Any:
        """Returns the model in the form that generation and evaluation take.

        Args:
          variables: from `model_variables`, on any mesh.
          label: where the variables came from, for messages.

        Returns:
          An interop.bundle.Bundle for the kind "language_model"; (module, variables) for
          "vision_tokenizer"; for another kind, what its own evaluators take.
        """

    @abc.abstractmethod
    def export(self, folder: os.PathLike, variables: dict, options: Any) -> None:
        """Writes the trained model as a directory of weights.

        Args:
          folder: exists and is empty.
          variables: from `model_variables`.
          options: an interop.exporting.ExportOptions.
        """

    # Ahead-of-time lowering.

    def programs(self) -> Mapping[str, Any]:
        """Returns name → train.program.Program, for `python -m emu3_jax.aot --program=NAME`.

        The update itself is not among them: every task has it, as "train".
        """
        return {}

    def with_layers(self, num_layers: int) -> Any:
        """Returns the config with `num_layers` layers and all loops unrolled, or None.

        `emu3_jax.aot` compiles it for few layers and extrapolates the time of a step. None if the
        model is not a stack of equal layers.
        """
        del num_layers
        return None
