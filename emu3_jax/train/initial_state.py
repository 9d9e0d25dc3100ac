"""The state that a run starts from: its newest checkpoint, or the seed and initial weights."""

import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh

from emu3_jax.models.cpu import options_to_run_once
from emu3_jax.train.run.checkpoint import Checkpoints, check_same_tree, has_checkpoints
from emu3_jax.train.run.distributed import say
from emu3_jax.train.step import abstract_state, average_start, init_state
from emu3_jax.train.task import Task, TrainState


class InitialState:
    """Makes the state of a run, fresh or from a checkpoint.

    Attributes:
      mesh: the mesh of the state.
      abstract: shapes, dtypes and shardings of the whole state.
    """

    def __init__(
        self,
        task: Task,
        optimizer: optax.GradientTransformation,
        key: jax.Array,
        mesh: Mesh,
        ema: bool,
    ):
        self.mesh, self._task = mesh, task
        self._how = (task, optimizer, key, mesh, ema)
        self.abstract = abstract_state(*self._how)
        self._key, self._replace = key, None

    def check(self, workdir: str | os.PathLike) -> None:
        """Raises ValueError if the run needs initial weights and they cannot be used."""
        if self._task.unsaved or not has_checkpoints(workdir):
            self._replace = self._task.initial_weights()

    def first(self, checkpoints: Checkpoints) -> tuple[TrainState, Any]:
        """Returns (state, what was saved beside it); the latter is None for a fresh run.

        `check` must have been called before.
        """
        if checkpoints.latest_step() is not None:
            layout = {"params": self.abstract.params, **self.abstract.model_state}
            unsaved = unsaved_collections(self._task, self._key, layout, self._replace)
            state, saved = self.restored(checkpoints, unsaved)
            say(f"resumed from step {int(state.step)}")
            return state, saved
        state = init_state(*self._how)
        if self._replace is not None:
            variables = replaced({"params": state.params, **state.model_state}, self._replace)
            params = variables.pop("params")
            averaged = None if state.ema is None else average_start(params)
            state = state.replace(params=params, model_state=variables, ema=averaged)
        count = sum(p.size for p in jax.tree.leaves(state.params))
        say(f"{count:,} parameters on mesh {dict(self.mesh.shape)}")
        return state, None

    def restored(self, checkpoints: Checkpoints, unsaved: dict) -> tuple[TrainState, Any]:
        """Returns (state of the newest checkpoint, what was saved beside it).

        Args:
          checkpoints: the checkpoints of the run.
          unsaved: name → collection; holds at least those that `Task.unsaved` names.
        """
        state, saved = checkpoints.restore(self.saved_part(self.abstract))
        kept = {name: unsaved[name] for name in self._task.unsaved}
        return state.replace(model_state={**state.model_state, **kept}), saved

    def saved_part(self, state: TrainState) -> TrainState:
        """Returns the state without the collections that `Task.unsaved` names."""
        left = self._task.unsaved
        return state.replace(
            model_state={n: x for n, x in state.model_state.items() if n not in left}
        )


def unsaved_collections(
    task: Task,
    key: jax.Array,
    layout: dict,
    replace: Callable[[dict], dict] | None,
) -> dict:
    """Makes the collections that checkpoints leave out, with the values of a fresh run.

    Args:
      task: the task; `Task.unsaved` names the collections.
      key: random key of `Task.init`.
      layout: all variables as ShapeDtypeStructs with shardings, on one mesh.
      replace: the result of `Task.initial_weights`.
    """
    if not task.unsaved:
        return {}
    mesh = jax.tree.leaves(layout)[0].sharding.mesh
    create = jax.jit(
        lambda key: nn.unbox(dict(task.init(key))),
        out_shardings=jax.tree.map(lambda x: x.sharding, layout),
        compiler_options=options_to_run_once(mesh),
    )
    variables = create(key)
    variables = variables if replace is None else replaced(variables, replace)
    wanted = {name: layout[name] for name in task.unsaved}
    kept = {name: variables[name] for name in task.unsaved}
    return jax.tree.map(lambda x, like: x.astype(like.dtype), kept, wanted)


def replaced(old: dict, replace: Callable[[dict], dict]) -> dict:
    """Returns replace(old) with the dtypes and shardings of `old`.

    Args:
      old: variables, arrays on devices.
      replace: the result of `Task.initial_weights`.

    Raises:
      CheckpointError: arrays are missing, unexpected or of other shapes; names them.
    """
    new = replace(old)
    check_same_tree(new, old, "start", types=False)
    return jax.tree.map(lambda n, o: jax.device_put(n.astype(o.dtype), o.sharding), new, old)
