"""Several processes that train as one: how they find each other, share data, and end together.

A pod has one process per host, and each runs the same program. What a process must know to join
comes from the launcher: explicit flags, or `--coordinator=auto` where JAX finds it by itself (Cloud
TPU, GKE, Slurm, Open MPI).

A process that fails leaves at once, without waiting for the others at JAX's shutdown barrier. Those
find out when their next exchange with it breaks (on CPU at once), and otherwise when it has been
silent for `--host_timeout` seconds; then they end as well, and say so.
"""

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from emu3_jax import exit_codes

AUTO = "auto"


class LostProcessError(ValueError, exit_codes.TransientError):
    """A process of the run cannot be reached."""


def define_flags() -> None:
    """Defines --coordinator, --processes, --process and --host_timeout; see `initialize`."""
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, or auto (Cloud TPU, Slurm); none: one process"
    )
    flags.DEFINE_integer("processes", None, "Number of processes, with --coordinator=HOST:PORT.")
    flags.DEFINE_integer("process", None, "Index of this process, from 0, likewise.")
    flags.DEFINE_integer(
        "host_timeout", 60, "Seconds after which a silent process counts as dead and all end."
    )


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins the run as the flags say; an error inside ends this process as `leave` does."""
    values = flags.FLAGS
    initialize(values.coordinator, values.processes, values.process, values.host_timeout)
    try:
        yield
    except BaseException as error:
        if jax.distributed.is_initialized():
            leave(error)
        raise


def initialize(
    coordinator: str | None, processes: int | None, process: int | None, host_timeout: int
) -> None:
    """Joins the run; must come before anything that touches a device.

    Args:
      coordinator: "HOST:PORT" of process 0, "auto" to let JAX find all of it, None for one process.
      processes: how many there are; with HOST:PORT only.
      process: which this is, likewise.
      host_timeout: see the flag.

    Raises:
      ValueError: settings that contradict each other.
      LostProcessError: processes that do not find each other.
    """
    explicit = coordinator not in (None, "", AUTO)
    if not explicit and (processes is not None or process is not None):
        raise ValueError("--processes and --process go with --coordinator=HOST:PORT")
    if not coordinator:
        return
    options: dict[str, Any] = {}
    if explicit:
        _check(coordinator, processes, process)
        options = dict(
            coordinator_address=coordinator,
            num_processes=processes,
            process_id=process,
            cluster_detection_method="deactivate",
        )
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=host_timeout, **options)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise LostProcessError(
            f"the processes of the run did not find each other (--coordinator={coordinator}): "
            f"{reason}"
        ) from error


def _check(coordinator: str, processes: int | None, process: int | None) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--coordinator must be HOST:PORT or auto, got {coordinator!r}")
    if processes is None or process is None:
        raise ValueError(f"--coordinator={coordinator} needs --processes and --process")
    if not 0 <= process < processes:
        raise ValueError(
            f"--process={process} must be one of 0 to {processes - 1} (--processes={processes})"
        )


def is_first() -> bool:
    """True in the process that prints, logs and writes for all."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line, from the first process alone."""
    if is_first():
        print(text, flush=True)


def gather(value: Any) -> list[Any]:
    """The JSON-able `value` of every process, in order, in every process."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(text.size)).tolist()
    padded = np.zeros(max(lengths), np.uint8)
    padded[: text.size] = text
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:n].tobytes()) for row, n in zip(rows, lengths, strict=True)]


def map_shared(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """`function` of every item, in order, in every process; each process computes its share.

    What it returns must be JSON-able. All processes call this with the same items.
    """
    processes = jax.process_count()
    parts = gather([function(item) for item in items[jax.process_index() :: processes]])
    return [parts[i % processes][i // processes] for i in range(len(items))]


def global_array(rows: np.ndarray, layout: Sharding, share: tuple[int, int] | None) -> jax.Array:
    """One array over all processes, of which this process has some rows.

    Args:
      rows: [n, …]; the other dimensions are whole, also where `layout` cuts them.
      layout: sharding of the result.
      share: (index of the first of these rows, rows of the whole array); None where every process
        holds all.

    Returns:
      Array [rows of the whole, …].
    """
    rows = np.asarray(rows)
    first, total = (0, len(rows)) if share is None else share
    shape = (total, *rows.shape[1:])

    def piece(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(total)
        return rows[(slice(start - first, stop - first), *index[1:])]

    return jax.make_array_from_callback(shape, layout, piece)


def leave(error: BaseException) -> NoReturn:
    """Ends this process of several because of `error`, with a sentence and without waiting."""
    me = f"process {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, KeyboardInterrupt):
        message, code = f"{me}: stopped.", 130
    elif isinstance(error, (ValueError, OSError)):
        message = f"Error in {me}: {' '.join(str(error).split())}"
        code = exit_codes.TRANSIENT if _lost_contact_caused(error) else exit_codes.of(error)
    elif isinstance(error, jax.errors.JaxRuntimeError) and _lost_contact(str(error)):
        message = (
            f"Error in {me}: another process has died or cannot be reached; its own output tells "
            "why. Start all of them again: the run goes on from its last checkpoint. "
            f"({str(error).strip().splitlines()[0]})"
        )
        code = exit_codes.TRANSIENT
    else:
        traceback.print_exception(error)
        message, code = f"Error in {me}: see the traceback above.", 1
    print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: JAX would wait for processes that wait for this one.
    os._exit(code)


def _lost_contact_caused(error: BaseException) -> bool:
    """Whether `error` was raised since another process is gone, for instance by a save."""
    cause = error.__cause__
    while cause is not None:
        if isinstance(cause, jax.errors.JaxRuntimeError) and _lost_contact(str(cause)):
            return True
        cause = cause.__cause__
    return False


def _lost_contact(message: str, signs: Sequence[str] = ("Gloo", "UNAVAILABLE", "DEADLINE")) -> bool:
    return any(sign in message for sign in signs)
