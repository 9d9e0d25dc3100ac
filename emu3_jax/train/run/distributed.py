"""Several processes in one run: how they find each other, exchange data, and end together.

A pod has one process per host; all run the same program. The launcher tells each process how to
join: by explicit flags, or by `--coordinator=auto` where JAX detects the cluster (Cloud TPU, GKE,
Slurm, Open MPI).

A process that fails exits at once, without waiting for the others at JAX's shutdown barrier. The
others notice when their next exchange with it breaks (on CPU at once), or after `--host_timeout`
seconds of silence. They then exit too, with a message.
"""

import contextlib
import os
import pickle
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

# The flags belong to the command that calls `define_flags`; its --help lists them.
flags.disclaim_key_flags()

AUTO = "auto"
# What JAX says of an exchange that broke: on a CPU, and elsewhere.
_LOST = ("Gloo", "UNAVAILABLE", "DEADLINE")
# Of each process at a time, in `gather`: they go through the memory of the devices.
GATHERED_BYTES = 1 << 24


class LostProcessError(ValueError, exit_codes.TransientError):
    """A process of the run cannot be reached."""


def define_flags() -> None:
    """Defines --coordinator, --processes, --process and --host_timeout; see `initialize`."""
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, or auto (Cloud TPU, Slurm); none: one process"
    )
    flags.DEFINE_integer("processes", None, "Number of processes, with --coordinator=HOST:PORT.")
    flags.DEFINE_integer("process", None, "Index of this process, from 0, with --processes.")
    flags.DEFINE_integer(
        "host_timeout", 60, "Seconds of silence after which a process counts as dead."
    )


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins the run that the flags describe; an error in the block ends the process."""
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
    """Joins the run; call it before anything that uses a device.

    Args:
      coordinator: "HOST:PORT" of process 0; "auto" lets JAX detect it and the two below; None for
        one process.
      processes: number of processes; with HOST:PORT only.
      process: index of this process, from 0; with HOST:PORT only.
      host_timeout: seconds of silence after which a process counts as dead.

    Raises:
      ValueError: contradictory settings.
      LostProcessError: the processes do not find each other.
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
    """Returns True in the process that prints, logs and writes for all."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line, in the first process only."""
    if is_first():
        print(text, flush=True)


def gather(value: Any) -> list[Any]:
    """Returns the picklable `value` of every process, in order; all processes must call it."""
    if jax.process_count() == 1:
        return [value]
    content = np.frombuffer(pickle.dumps(value), np.uint8)
    length = np.array(divmod(content.size, GATHERED_BYTES), np.int32)  # JAX has no int64
    lengths = multihost_utils.process_allgather(length) @ np.array([GATHERED_BYTES, 1])
    parts = []
    for start in range(0, lengths.max(), GATHERED_BYTES):
        size = min(GATHERED_BYTES, int(lengths.max()) - start)
        # A power of two: each length is a program of its own.
        padded = np.zeros(1 << (size - 1).bit_length(), np.uint8)
        part = content[start : start + size]
        padded[: part.size] = part
        parts.append(multihost_utils.process_allgather(padded))
    rows = np.concatenate(parts, axis=1)
    return [pickle.loads(row[:n].tobytes()) for row, n in zip(rows, lengths, strict=True)]


def map_shared(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Returns `function` of every item, in order, in every process; each computes a share.

    Results must be picklable. All processes must call this with the same items.
    """
    processes = jax.process_count()
    parts = gather([function(item) for item in items[jax.process_index() :: processes]])
    return [parts[i % processes][i // processes] for i in range(len(items))]


def global_array(rows: np.ndarray, layout: Sharding, share: tuple[int, int] | None) -> jax.Array:
    """Makes one array over all processes from the rows that each process has.

    Args:
      rows: [n, …], rows of this process; the other dimensions are whole, even if `layout` shards
        them.
      layout: sharding of the result.
      share: (index of the first of these rows, total number of rows); None if every process has
        all rows.

    Returns:
      Array [total number of rows, …].
    """
    rows = np.asarray(rows)
    first, total = (0, len(rows)) if share is None else share
    shape = (total, *rows.shape[1:])

    def piece(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(total)
        return rows[(slice(start - first, stop - first), *index[1:])]

    return jax.make_array_from_callback(shape, layout, piece)


def leave(error: BaseException) -> NoReturn:
    """Ends this process because of `error`: prints one sentence, does not wait for the others."""
    me = f"process {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, KeyboardInterrupt):
        message, code = f"{me}: stopped.", 130
    elif has_lost_contact(error):  # a save that failed for it, too
        message = (
            f"Error in {me}: another process has died or cannot be reached; its own output tells "
            "why. Start all of them again: the run resumes from its last checkpoint. "
            f"({str(error).strip().splitlines()[0]})"
        )
        code = exit_codes.TRANSIENT
    elif isinstance(error, (ValueError, OSError)):
        message = f"Error in {me}: {' '.join(str(error).split())}"
        code = exit_codes.of(error)
    else:
        traceback.print_exception(error)
        message, code = f"Error in {me}: see the traceback above.", 1
    print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: JAX would wait for processes that are waiting for this one.
    os._exit(code)


def has_lost_contact(error: BaseException | None) -> bool:
    """Whether `error` or one of its causes is a broken exchange with another process."""
    while error is not None:
        signs = _LOST if isinstance(error, jax.errors.JaxRuntimeError) else ()
        if any(sign in str(error) for sign in signs):
            return True
        error = error.__cause__
    return False
