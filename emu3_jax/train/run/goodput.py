"""Where a run's time went: every second of wall time in exactly one category.

Times are the host's, which always waits for the device. `data` is the time that the device waited
for a batch, not the time of reading while a step ran. RUN/goodput.jsonl has one line per log step
or save. `summary` adds up all starts of a run; steps that a killed process did after its last
checkpoint had to be repeated, so their time moves from `step` to `lost`.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from emu3_jax.files import AppendedLines, read_lines
from emu3_jax.train.run import distributed

GOODPUT_FILE = "goodput.jsonl"
CATEGORIES = ("initialise", "compile", "data", "step", "save", "evaluate", "lost")
# Categories whose time since a checkpoint is lost when a run goes back to it.
_PROGRESS = ("data", "step")


class Ledger:
    """Seconds of this process by category; they sum to the time since the ledger was made."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._since = clock()
        self._seconds = dict.fromkeys(CATEGORIES, 0.0)
        self._now = "initialise"
        self._progress_at: dict[int, dict[str, float]] = {}

    @contextlib.contextmanager
    def during(self, category: str) -> Iterator[None]:
        """Books the time of the block on `category`; of nested blocks, the inner one counts."""
        outer = self._now
        self.turn_to(category)
        try:
            yield
        finally:
            self.turn_to(outer)

    def turn_to(self, category: str) -> None:
        """Books the time from now on on `category`."""
        self.seconds()
        self._now = category

    def seconds(self) -> dict[str, float]:
        """Returns the seconds so far by category."""
        now = self._clock()
        self._seconds[self._now] += now - self._since
        self._since = now
        return dict(self._seconds)

    def move(self, source: str, target: str, seconds: float) -> None:
        """Moves `seconds` from the category `source` to `target`."""
        self._seconds[source] -= seconds
        self._seconds[target] += seconds

    def mark(self, step: int) -> None:
        """Records the time spent on steps so far, for a later `lose_since(step)`."""
        self._progress_at[step] = {name: self.seconds()[name] for name in _PROGRESS}

    def lose_since(self, step: int) -> None:
        """Books the time of steps after `step` as lost; `mark(step)` must have been called."""
        now, then = self.seconds(), self._progress_at[step]
        for name in _PROGRESS:
            self.move(name, "lost", now[name] - then[name])


class GoodputLog:
    """Writes a ledger to RUN/goodput.jsonl, in the first process only."""

    def __init__(self, workdir: Any, ledger: Ledger, start_step: int):
        self._ledger = ledger
        began = time.time() - sum(ledger.seconds().values())
        self._start = {"began": round(began, 3), "from": start_step}
        self._lines = AppendedLines(workdir, GOODPUT_FILE) if distributed.is_first() else None

    def write(self, step: int) -> None:
        """Appends a line: the step, when (s since 1970) and where this start began, seconds."""
        if self._lines is not None:
            seconds = {k: round(v, 3) for k, v in self._ledger.seconds().items()}
            self._lines.append({"step": step, **self._start, "seconds": seconds})

    def close(self) -> None:
        """Closes the file."""
        if self._lines is not None:
            self._lines.close()


def summary(workdir: Any) -> dict[str, float]:
    """Returns the seconds of a run by category, over all its starts; they sum to its wall time.

    Besides CATEGORIES there is "down": the time from the last line of a start to the next start. It
    includes what a killed process did after its last line.

    Raises:
      ValueError: there is no goodput.jsonl.
    """
    by_start: dict[float, list[dict]] = {}
    for line in read_lines(workdir, GOODPUT_FILE):
        by_start.setdefault(line["began"], []).append(line)
    starts = list(by_start.values())
    total = dict.fromkeys((*CATEGORIES, "down"), 0.0)
    for lines, following in zip(starts, [*starts[1:], None], strict=True):
        seconds = dict(lines[-1]["seconds"])
        if following:
            kept = [line for line in lines if line["step"] <= following[0]["from"]]
            for name in _PROGRESS:
                lost = seconds[name] - (kept[-1]["seconds"][name] if kept else 0.0)
                seconds[name] -= lost
                seconds["lost"] += lost
            ended = lines[-1]["began"] + sum(lines[-1]["seconds"].values())
            total["down"] += following[0]["began"] - ended
        for name, value in seconds.items():
            total[name] += value
    return total


def shares(seconds: dict[str, float]) -> str:
    """Returns "step 91.0 %, compile 5.2 %, …", largest first, without shares below 0.05 %."""
    whole = sum(seconds.values())
    named = sorted(seconds.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {100 * s / whole:.1f} %" for name, s in named if s > 0.0005 * whole)
