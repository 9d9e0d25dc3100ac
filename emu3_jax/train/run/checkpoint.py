"""Checkpoints of a run: state and data position, written in the background, whole or not at all.

Orbax writes each step to a temporary folder and renames it when complete, so a killed save leaves
the earlier checkpoints as they were. This file is the only one that knows Orbax.
"""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from emu3_jax import exit_codes
from emu3_jax.train.run import distributed
from emu3_jax.train.run.retention import CheckpointConfig, Retention

CHECKPOINT_FOLDER = "checkpoints"
# More than there are: state, data, metadata written twice, and the renaming of the folder.
_PARTS_OF_A_SAVE = 8


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message says which and why."""


class SaveError(CheckpointError, exit_codes.TransientError):
    """A checkpoint that cannot be written: storage may be there again by the next start."""


class Checkpoints:
    """The checkpoints of one run directory, on a disk or in a bucket (gs://…)."""

    def __init__(self, workdir: str | os.PathLike, config: CheckpointConfig):
        self._directory = _folder(workdir)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"checkpoints cannot be kept in {self._directory}: {_first_line(error)}"
            ) from error
        self._retention = Retention(config)
        self._manager = self._new_manager()
        _quiet_orbax()
        self._saving: int | None = None

    def _new_manager(self) -> ocp.CheckpointManager:
        """Clears away unfinished folders of earlier saves as well."""
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._retention,
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
        """The newest checkpoint's step, or None; all processes agree on it."""
        return self._manager.latest_step()

    def latest_when_idle(self) -> int | None:
        """Likewise, once the save that runs is complete."""
        self.wait()
        return self.latest_step()

    def note(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes down the metric that decides which checkpoints are the best."""
        self._retention.note(step, metrics)

    def save(self, step: int, state: Any, data_state: Any, wait: bool = False) -> None:
        """Starts saving, once the save before it is complete, whose error is raised here.

        Args:
          step: number of updates done.
          state: a TrainState.
          data_state: JSON-able: what else a run needs to go on, the data position first of all.
          wait: return only when the checkpoint is complete.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        self._saving = step
        with self._told_in_one_sentence():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=ocp.args.JsonSave(data_state),
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

    def _failed(self, error: Exception) -> SaveError:
        """What a failed save comes to; its unfinished folder would only fill the disk.

        The manager is made anew: other parts of the failed save may still be writing, and their
        errors would otherwise come up in whatever is asked of it next. Among several processes
        that cannot be done by one alone; the run ends, and its next start clears up.
        """
        if jax.process_count() > 1:
            return SaveError(self._failure(error))
        self._close_manager()
        self._clear_unfinished()
        self._manager = self._new_manager()
        return SaveError(self._failure(error))

    def _failure(self, error: Exception) -> str:
        latest = max(_complete_steps(self._directory), default=None)
        kept = "no earlier checkpoint exists" if latest is None else f"step {latest} is intact"
        return (
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
        return restored["state"], restored["data"]

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
        if distributed.is_first():
            self._remove_empty_folders()

    def _remove_empty_folders(self) -> None:
        """A run that was refused before it had anything to save leaves no trace."""
        for folder in (self._directory, self._directory.parent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _clear_unfinished(self) -> None:
        """Removes the folders of saves that failed.

        A part that nobody can wait for may put one back, so this goes on until all is quiet.
        """
        quiet_since = time.monotonic()
        give_up = quiet_since + 5.0
        while quiet_since + 0.5 > time.monotonic() and time.monotonic() < give_up:
            for child in self._directory.glob("*orbax-checkpoint-tmp*"):
                shutil.rmtree(child, ignore_errors=True)  # nothing in a bucket, which needs none
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


def is_run_directory(path: str | os.PathLike) -> bool:
    """Whether a run keeps its checkpoints at `path`."""
    return (epath.Path(path) / CHECKPOINT_FOLDER).is_dir()


def has_checkpoints(workdir: str | os.PathLike) -> bool:
    """True if the run directory holds at least one complete checkpoint."""
    return bool(_complete_steps(_folder(workdir)))


def _folder(workdir: str | os.PathLike) -> epath.Path:
    path = epath.Path(workdir) / CHECKPOINT_FOLDER
    return path if "://" in os.fspath(path) else epath.Path(os.path.abspath(path))


def _complete_steps(directory: epath.Path) -> list[int]:
    """Steps in ascending order. An unfinished folder has a longer name; in a bucket, where nothing
    can be renamed, it lacks a file that Orbax writes last."""
    if not directory.is_dir():
        return []
    numbered = [child for child in directory.iterdir() if child.name.isdigit()]
    return sorted(int(c.name) for c in numbered if ocp.utils.is_checkpoint_finalized(c))


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


def restore_variables(
    workdir: str | os.PathLike, wanted: Mapping[str, Any], step: int | None = None
) -> tuple[dict[str, Any], int]:
    """Reads variables of a run directory's checkpoint → (variables, step), straight onto devices.

    Every shard is read from the disk, brought to its type on the host and put on its device: a
    device never holds more than its shards. The averaged weights are read where the run keeps them.

    Args:
      workdir: the run directory.
      wanted: {"params": …, other collections}, ShapeDtypeStructs with shardings, of any floating
        types. Of the parts of a collection that were saved, those that are not wanted are not read.
      step: of the checkpoint; None for the newest.

    Raises:
      CheckpointError: there is no such checkpoint, or it holds other arrays.
    """
    directory = _folder(workdir)
    steps = _complete_steps(directory)
    if not steps:
        raise CheckpointError(f"{workdir} has no checkpoint yet")
    step = steps[-1] if step is None else step
    if step not in steps:
        known = ", ".join(map(str, steps))
        raise CheckpointError(f"{workdir} has no checkpoint of step {step}; it has: {known}")
    where = f"checkpoint {directory}/{step}"
    path = directory / str(step) / "state"
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
        with _readable(where):
            saved = reader.metadata(path).tree
        weights = "params" if saved.get("ema") is None else "ema"
        found = {"params": saved[weights], **saved.get("model_state", {})}
        check_same_tree(_parts(found, wanted), wanted, where, types=False)
        others = {name: tree for name, tree in wanted.items() if name != "params"}
        abstract = {weights: wanted["params"]} | ({"model_state": others} if others else {})
        with _readable(where):
            restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
            state = reader.restore(
                path, args=ocp.args.PyTreeRestore(abstract, restore_args, partial_restore=True)
            )
    return {"params": state[weights], **state.get("model_state", {})}, step


def _parts(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Of each collection that is wanted the modules that are."""
    return {
        name: {part: found[name][part] for part in modules if part in found[name]}
        for name, modules in wanted.items()
        if name in found
    }
