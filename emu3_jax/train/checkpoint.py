"""Checkpoints of a run: state and data position, written in the background, whole or not at all.

Orbax writes each step to a temporary folder and renames it when complete, so a killed save leaves
the earlier checkpoints as they were. This file is the only one that knows Orbax.
"""

import contextlib
import dataclasses
import logging
import pathlib
import shutil
import time
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from emu3_jax.config import read_config

CHECKPOINT_FOLDER = "checkpoints"
# More than there are: state, data, metadata written twice, and the renaming of the folder.
_PARTS_OF_A_SAVE = 8


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save and what to keep.

    Attributes:
      every: steps between saves; the last step is always saved.
      keep: newest checkpoints to keep.
      keep_every: checkpoints at multiples of this step are kept for ever; 0 for none.
    """

    every: int = 500
    keep: int = 2
    keep_every: int = 0

    def __post_init__(self):
        for name, least in (("every", 1), ("keep", 1), ("keep_every", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"checkpoint.{name} must be {least} or more, got {getattr(self, name)}"
                )


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message says which and why."""


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, workdir: str | pathlib.Path, config: CheckpointConfig):
        self._directory = pathlib.Path(workdir).absolute() / CHECKPOINT_FOLDER
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"checkpoints cannot be kept in {self._directory}: {_first_line(error)}"
            ) from error
        self._config = config
        self._manager = self._new_manager()
        _quiet_orbax()
        self._saving: int | None = None

    def _new_manager(self) -> ocp.CheckpointManager:
        """Clears away unfinished folders of earlier saves as well."""
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._config.keep,
            keep_period=self._config.keep_every or None,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        return ocp.CheckpointManager(
            self._directory,
            options=options,
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(),
            },
        )

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, or None."""
        return max(_complete_steps(self._directory), default=None)

    def save(self, step: int, state: Any, data_state: Any, wait: bool = False) -> None:
        """Starts saving, once the save before it is complete, whose error is raised here.

        Args:
          step: number of updates done.
          state: a TrainState.
          data_state: JSON-able position of the data iterator after `step` batches.
          wait: return only when the checkpoint is complete.
        """
        self.wait()
        if step in _complete_steps(self._directory):
            return
        self._saving = step
        with self._told_in_one_sentence():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=ocp.args.JsonSave({"position": data_state}),
                ),
                force=True,
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Blocks until the background save is complete, raising its error if it failed."""
        with self._told_in_one_sentence():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _told_in_one_sentence(self):
        try:
            yield
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> CheckpointError:
        """What a failed save comes to; its unfinished folder would only fill the disk.

        The manager is made anew: other parts of the failed save may still be writing, and their
        errors would otherwise come up in whatever is asked of it next.
        """
        self._close_manager()
        self._clear_unfinished()
        self._manager = self._new_manager()
        latest = self.latest_step()
        kept = "no earlier checkpoint exists" if latest is None else f"step {latest} is intact"
        return CheckpointError(
            f"saving step {self._saving} to {self._directory} failed ({_first_line(error)}); {kept}"
        )

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, Any]:
        """Returns (state, data_state) on the shardings of `abstract_state`."""
        step = self.latest_step() if step is None else step
        if step is None:
            raise CheckpointError(f"{self._directory} holds no complete checkpoint")
        where = f"checkpoint {self._directory}/{step}"
        with _readable(where):
            saved = self._manager.item_metadata(step)["state"].tree
        check_same_tree(saved, abstract_state, where)
        with _readable(where):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract_state), data=ocp.args.JsonRestore()
                ),
            )
        return restored["state"], restored["data"]["position"]

    def close(self) -> None:
        """Waits for the background save and releases Orbax's threads.

        Whoever needs to know how the save ended calls `wait` before: this is called on the way
        out of an error as well, which it must not hide.
        """
        try:
            self.wait()
        except CheckpointError as error:
            print(f"Warning: {error}", flush=True)
        self._close_manager()

    def _clear_unfinished(self) -> None:
        """Removes the folders of saves that failed.

        A part that nobody can wait for may put one back, so this goes on until all is quiet.
        """
        quiet_since = time.monotonic()
        give_up = quiet_since + 5.0
        while quiet_since + 0.5 > time.monotonic() and time.monotonic() < give_up:
            for child in self._directory.glob("*orbax-checkpoint-tmp*"):
                shutil.rmtree(child, ignore_errors=True)
                quiet_since = time.monotonic()
            time.sleep(0.05)

    def _close_manager(self) -> None:
        """Waits for everything that still writes; each failed part raises its error once."""
        for _ in range(_PARTS_OF_A_SAVE):
            with contextlib.suppress(Exception):
                self._manager.close()
                return


def _quiet_orbax() -> None:
    """Keeps Orbax from printing the traceback of a failed save, several times over: the error
    reaches the caller of `save` or `wait` anyway."""
    logger = logging.getLogger("absl")
    if _is_no_orbax_traceback not in logger.filters:
        logger.addFilter(_is_no_orbax_traceback)


def _is_no_orbax_traceback(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)


def has_checkpoints(workdir: str | pathlib.Path) -> bool:
    """True if the run directory holds at least one complete checkpoint."""
    return bool(_complete_steps(pathlib.Path(workdir) / CHECKPOINT_FOLDER))


def _complete_steps(directory: pathlib.Path) -> list[int]:
    """Steps in ascending order; an unfinished folder has a longer name."""
    if not directory.is_dir():
        return []
    return sorted(int(child.name) for child in directory.iterdir() if child.name.isdigit())


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@contextlib.contextmanager
def _readable(where: str):
    """Tells whatever goes wrong inside as one CheckpointError."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{where} cannot be read: {_first_line(error)}") from error


def _flat_arrays(tree: Any, types: bool) -> dict[str, str]:
    """Path of each array → "float32 [4, 2]"."""
    named = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        named[name] = f"{jax.numpy.dtype(leaf.dtype).name if types else ''} {list(leaf.shape)}"
    return named


def check_same_tree(given: Any, wanted: Any, where: str, types: bool = True) -> None:
    """Raises CheckpointError naming the first arrays in which two trees differ.

    Args:
      given: what was saved: a tree of things with shape and dtype.
      wanted: what the config asks for.
      where: what the message calls `given`.
      types: whether dtypes must agree as well as shapes.
    """
    have, want = _flat_arrays(given, types), _flat_arrays(wanted, types)
    problems = [
        f"{name} is {have[name].strip()}, the config gives {want[name].strip()}"
        if name in have
        else f"{name} is missing"
        for name in want
        if have.get(name) != want[name]
    ]
    problems += [f"{name} is unexpected" for name in have if name not in want]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{where} does not fit this config: {'; '.join(problems[:5])}{more}")


def restore_for_evaluation(
    workdir: str | pathlib.Path, step: int | None = None
) -> tuple[Any, Any, Any, int]:
    """Reads a run directory → (config, params, model_state, step), on the first device.

    The averaged weights are returned where the run keeps them. What only training needs is not
    read.

    Raises:
      ConfigError: `workdir` is no run directory. CheckpointError: it holds no such checkpoint.
    """
    config = read_config(workdir)
    directory = pathlib.Path(workdir).absolute() / CHECKPOINT_FOLDER
    steps = _complete_steps(directory)
    if not steps:
        raise CheckpointError(f"{workdir} has a config but no checkpoint yet")
    step = steps[-1] if step is None else step
    if step not in steps:
        known = ", ".join(map(str, steps))
        raise CheckpointError(f"{workdir} has no checkpoint of step {step}; it has: {known}")
    where = f"checkpoint {directory}/{step}"
    path = epath.Path(directory / str(step) / "state")
    with _readable(where), contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
        saved = reader.metadata(path).tree
        weights = "params" if saved.get("ema") is None else "ema"
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=here),
            {name: saved[name] for name in (weights, "model_state")},
        )
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
        state = reader.restore(
            path, args=ocp.args.PyTreeRestore(abstract, restore_args, partial_restore=True)
        )
    return config, state[weights], state.get("model_state", {}), step
