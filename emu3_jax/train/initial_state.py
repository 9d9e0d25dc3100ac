"""What a run begins from: its newest checkpoint, else the seed and what `start` makes of it."""

from collections.abc import Callable
from typing import Any, Protocol

import jax

from emu3_jax.train.checkpoint import Checkpoints, check_same_tree
from emu3_jax.train.distributed import say
from emu3_jax.train.state import TrainState, average_start


class Start(Protocol):
    """What a fresh run begins from instead of random weights."""

    def __call__(self, variables: dict) -> dict:
        """Returns the same tree with other values.

        Args:
          variables: {"params": …, other collections} as initialised, jax arrays on the mesh. Leaves
            of the result may be these, jax arrays laid out in any way, or numpy arrays.
        """


def initial_state(
    checkpoints: Checkpoints,
    abstract: TrainState,
    create: Callable[[], TrainState],
    start: Start | None,
) -> tuple[TrainState, Any]:
    """Returns the state, and what was saved beside it (None for a fresh run).

    Args:
      checkpoints: of the run directory.
      abstract: shapes, dtypes and shardings of the state.
      create: makes the state from the seed.
      start: of a fresh run.
    """
    if checkpoints.latest_step() is not None:
        state, saved = checkpoints.restore(abstract)
        say(f"resumed from step {int(state.step)}")
        return state, saved
    state = create()
    if start is not None:
        state = _started(state, start)
    count = sum(p.size for p in jax.tree.leaves(state.params))
    say(f"{count:,} parameters on mesh {dict(state.step.sharding.mesh.shape)}")
    return state, None


def _started(state: TrainState, start: Start) -> TrainState:
    old = {"params": state.params, **state.model_state}
    new = start(old)
    check_same_tree(new, old, "start", types=False)
    new = jax.tree.map(lambda n, o: jax.device_put(n.astype(o.dtype), o.sharding), new, old)
    params = new.pop("params")
    averaged = None if state.ema is None else average_start(params)
    return state.replace(params=params, model_state=new, ema=averaged)
