"""Signs of life of a run, a look inside when there are none, and a window for the profiler."""

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
    """How a run is watched.

    Attributes:
      heartbeat_seconds: RUN/heartbeat.json is written anew after a step, at most this often.
      hang_seconds: after so long without a step, an evaluation or a save, every process writes the
        stacks of all its threads to stderr, and again after as long; 0: never. The first step
        includes compiling.
      hang_exit: end the process then, with code 1, so that a launcher can start the run again.
      profile_step: first of the steps that the profiler records into RUN/profile; 0: none.
      profile_steps: how many steps it records.
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
    """Watches the loop, which tells it what it does; a context manager."""

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
        """The loop has dispatched `step` and done all that belongs to it."""
        self.rearm()
        now = time.monotonic()
        if distributed.is_first() and now - self._written >= self._config.heartbeat_seconds:
            self._written = now
            # A full disk ends the run where it matters, in a log or a checkpoint.
            with contextlib.suppress(OSError):
                write_json(self._workdir / HEARTBEAT_FILE, {"step": step, "time": time.time()})

    def before(self, step: int) -> None:
        """Opens the profiler's window before its first step and closes it behind its last.

        The loop knows that a step has ended when it has dispatched the next one, so the trace also
        shows the beginning of that one.
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
        """The time without a sign of life begins anew."""
        if self._config.hang_seconds:
            faulthandler.dump_traceback_later(
                self._config.hang_seconds,
                repeat=True,
                file=sys.__stderr__,
                exit=self._config.hang_exit,
            )
