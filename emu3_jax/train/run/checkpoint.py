"""Checkpoints of a run: state and data position, written in the background, complete or absent.

Orbax writes each step to a temporary folder and renames it when complete, so a killed save leaves
the earlier checkpoints intact. Only this module uses Orbax.
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
# An upper bound: state, data, metadata written twice, and the renaming of the folder.
_PARTS_OF_A_SAVE = 8


class CheckpointError(ValueError):
    """A checkpoint cannot be read or written; the message names it and the reason."""


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
        """Returns a manager; unfinished folders of earlier saves are removed."""
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
        """Returns the step of the newest checkpoint, or None; the same in all processes."""
        return self._manager.latest_step()

    def latest_when_idle(self) -> int | None:
        """Returns `latest_step` after the running save is complete."""
        self.wait()
        return self.latest_step()

    def note(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the metric that decides which checkpoints are the best."""
        self._retention.note(step, metrics)

    def save(self, step: int, state: Any, data_state: Any, wait: bool = False) -> None:
        """Starts a save after the previous one is complete; raises the previous one's error.

        Args:
          step: number of updates done.
          state: a TrainState.
          data_state: JSON-able; what else a run needs to resume, such as the data position.
          wait: return only when the checkpoint is complete.

        Raises:
          CheckpointError: this or the previous save failed; earlier checkpoints are intact.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        self._saving = step
        with self._errors_as_checkpoint_error():
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
        """Blocks until the background save is complete; CheckpointError if it failed."""
        with self._errors_as_checkpoint_error():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _errors_as_checkpoint_error(self):
        try:
            yield
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> SaveError:
        """Returns the error of a failed save; removes its folder, which would fill the disk.

        The manager is replaced: other parts of the failed save may still be writing, and their
        errors would be raised by its next call. With several processes, one alone cannot do this;
        the run ends, and its next start removes the folder.
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
        """Returns (state, data_state); arrays have the shardings of `abstract_state`.

        Args:
          abstract_state: tree of ShapeDtypeStructs with shardings.
          step: step of the checkpoint; None for the newest.

        Raises:
          CheckpointError: there is no such checkpoint, it cannot be read, or its arrays differ.
        """
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

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Closes, unless another process is lost: what is being saved cannot become whole then."""
        if not distributed.has_lost_contact(error):
            self.close()

    def close(self) -> None:
        """Waits for the background save and releases Orbax's threads.

        A failed save only prints a warning here: `close` also runs while another error propagates,
        and must not hide it. Call `wait` first to get the error.
        """
        try:
            self.wait()
        except CheckpointError as error:
            print(f"Warning: {error}", flush=True)
        self._close_manager()
        if distributed.is_first():
            self._remove_empty_folders()

    def _remove_empty_folders(self) -> None:
        """Removes the empty folders of a run that ended before its first save."""
        for folder in (self._directory, self._directory.parent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _clear_unfinished(self) -> None:
        """Removes the folders of saves that failed.

        A part that cannot be waited for may create one again, so this repeats until no folder has
        appeared for half a second, for at most five seconds.
        """
        quiet_since = time.monotonic()
        give_up = quiet_since + 5.0
        while quiet_since + 0.5 > time.monotonic() and time.monotonic() < give_up:
            for child in self._directory.glob("*orbax-checkpoint-tmp*"):
                shutil.rmtree(child, ignore_errors=True)  # no effect in a bucket: not needed
                quiet_since = time.monotonic()
            time.sleep(0.05)

    def _close_manager(self) -> None:
        """Waits for all parts that still write; each failed part raises its error once."""
        for _ in range(_PARTS_OF_A_SAVE):
            with contextlib.suppress(Exception):
                self._manager.close()
                return


def _quiet_orbax() -> None:
    """Keeps Orbax from printing the traceback of a failed save several times; the caller of `save`
    or `wait` gets the error."""
    logger = logging.getLogger("absl")
    if _is_no_orbax_traceback not in logger.filters:
        logger.addFilter(_is_no_orbax_traceback)


def _is_no_orbax_traceback(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)


def is_run_directory(path: str | os.PathLike) -> bool:
    """Returns whether `path` is a run directory: it has a folder of checkpoints."""
    return (epath.Path(path) / CHECKPOINT_FOLDER).is_dir()


def has_checkpoints(workdir: str | os.PathLike) -> bool:
    """Returns whether the run directory holds at least one complete checkpoint."""
    return bool(_complete_steps(_folder(workdir)))


def _folder(workdir: str | os.PathLike) -> epath.Path:
    path = epath.Path(workdir) / CHECKPOINT_FOLDER
    return path if "://" in os.fspath(path) else epath.Path(os.path.abspath(path))


def _complete_steps(directory: epath.Path) -> list[int]:
    """Returns the steps of complete checkpoints, ascending. An unfinished folder has a longer name;
    in a bucket, which cannot rename, it lacks a file that Orbax writes last."""
    if not directory.is_dir():
        return []
    numbered = [child for child in directory.iterdir() if child.name.isdigit()]
    return sorted(int(c.name) for c in numbered if ocp.utils.is_checkpoint_finalized(c))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@contextlib.contextmanager
def _readable(where: str):
    """Raises any error of the block as a CheckpointError."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{where} cannot be read: {_first_line(error)}") from error


def _flat_arrays(tree: Any, types: bool) -> dict[str, str]:
    """Returns path of each array → "float32 [4, 2]", or "[4, 2]" without types."""
    named = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        named[name] = f"{jax.numpy.dtype(leaf.dtype).name if types else ''} {list(leaf.shape)}"
    return named


def check_same_tree(given: Any, wanted: Any, where: str, types: bool = True) -> None:
    """Raises CheckpointError naming the first arrays in which two trees differ.

    Args:
      given: what was saved; leaves have shape and dtype.
      wanted: what the config requires; leaves have shape and dtype.
      where: the name of `given` in the message.
      types: whether dtypes must be equal as well as shapes.
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
    """Reads variables of a run directory's checkpoint → (variables, step), sharded onto devices.

    Each shard is read from disk, converted to its dtype on the host and put on its device, so a
    device never holds more than its shards. Params are the averaged weights if the run keeps them.

    Args:
      workdir: the run directory.
      wanted: {"params": …, other collections}, ShapeDtypeStructs with shardings, of any floating
        dtypes. Saved parts of a collection that are not in `wanted` are not read.
      step: step of the checkpoint; None for the newest.

    Raises:
      CheckpointError: there is no such checkpoint, or its arrays differ.
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
    """Returns `found` restricted to the collections and modules of `wanted`."""
    return {
        name: {part: found[name][part] for part in modules if part in found[name]}
        for name, modules in wanted.items()
        if name in found
    }
