"""Heartbeat of a run, stack dumps when it hangs, and a window for the profiler."""

import contextlib
import dataclasses
import faulthandler
import os
import sys
import time

import jax
from etils import epath

from emu3_jax.files import write_json
from emu3_jax.train.run import distributed

HEARTBEAT_FILE = "heartbeat.json"
PROFILE_FOLDER = "profile"


@dataclasses.dataclass(frozen=True)
class WatchConfig:
    """Heartbeat, hang detection and profiler of a run.

    Attributes:
      heartbeat_seconds: least number of seconds between two writings of RUN/heartbeat.json, which
        follow a step.
      hang_seconds: after this many seconds without the end of a step, an evaluation or a save,
        every process writes the stacks of all its threads to stderr, and again after each such
        time; 0: never. The first step includes compilation.
      hang_exit: also end the process then, with code 1, so that a launcher can restart the run.
      profile_step: first step that the profiler records into RUN/profile; 0: none.
      profile_steps: number of steps it records.
    """

    heartbeat_seconds: float = 10.0
    hang_seconds: float = 1800.0
    hang_exit: bool = False
    profile_step: int = 0
    profile_steps: int = 3

    def __post_init__(self):
        for name, least in (
            ("heartbeat_seconds", 0),
            ("hang_seconds", 0),
            ("profile_step", 0),
            ("profile_steps", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"watch.{name} must be {least} or more, got {getattr(self, name)}")


class Watch:
    """Watches the loop, which reports its progress to it; a context manager."""

    def __init__(self, workdir: str | os.PathLike, config: WatchConfig):
        self._workdir, self._config = epath.Path(workdir), config
        self._written = -float("inf")
        self._profiling = False

    def __enter__(self) -> "Watch":
        self.rearm()
        return self

    def __exit__(self, *exc) -> None:
        if self._config.hang_seconds:
            faulthandler.cancel_dump_traceback_later()
        if self._profiling:
            jax.profiler.stop_trace()

    def alive(self, step: int) -> None:
        """Writes the heartbeat; called when all work of `step` has been dispatched or done."""
        self.rearm()
        now = time.monotonic()
        if distributed.is_first() and now - self._written >= self._config.heartbeat_seconds:
            self._written = now
            # A full disk must not end the run here; a log or a checkpoint will report it.
            with contextlib.suppress(OSError):
                write_json(self._workdir / HEARTBEAT_FILE, {"step": step, "time": time.time()})

    def before(self, step: int) -> None:
        """Starts the profiler before its first step and stops it after its last one.

        A step has ended only when the loop has dispatched the next one, so the trace also contains
        the beginning of that one.
        """
        first, count = self._config.profile_step, self._config.profile_steps
        if not first or not distributed.is_first():
            return
        folder = os.fspath(self._workdir / PROFILE_FOLDER)
        if self._profiling and step > first + count:
            jax.profiler.stop_trace()
            self._profiling = False
            distributed.say(f"profile of steps {first} to {first + count - 1}: {folder}")
        if step == first:
            jax.profiler.start_trace(folder)
            self._profiling = True

    def rearm(self) -> None:
        """Restarts the timer of `hang_seconds`."""
        if self._config.hang_seconds:
            faulthandler.dump_traceback_later(
                self._config.hang_seconds,
                repeat=True,
                file=sys.__stderr__,
                exit=self._config.hang_exit,
            )
