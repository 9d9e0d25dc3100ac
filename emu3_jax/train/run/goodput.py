"""Where a run's time went: every second of the wall clock in exactly one category.

The time is the host's, as it waits for the device all the while: `data` is what the device waited
for a batch, not what reading cost beside a running step. RUN/goodput.jsonl holds one line a log
step or save; `summary` adds the starts of a run up, and moves the steps that a killed process did
after its last checkpoint, and that had to be done again, from `step` to `lost`.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from emu3_jax.files import AppendedLines, read_lines
from emu3_jax.train.run import distributed

GOODPUT_FILE = "goodput.jsonl"
CATEGORIES = ("initialise", "compile", "data", "step", "save", "evaluate", "lost")
# What is thrown away when a run goes back to a checkpoint.
_PROGRESS = ("data", "step")


class Ledger:
    """Seconds of this process by category; they sum to the time since it was made."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._since = clock()
        self._seconds = dict.fromkeys(CATEGORIES, 0.0)
        self._now = "initialise"
        self._progress_at: dict[int, dict[str, float]] = {}

    @contextlib.contextmanager
    def during(self, category: str) -> Iterator[None]:
        """Books the block on `category`; blocks may be nested, the inner one counts."""
        outer = self._now
        self.turn_to(category)
        try:
            yield
        finally:
            self.turn_to(outer)

    def turn_to(self, category: str) -> None:
        """Books what comes on `category`."""
        self.seconds()
        self._now = category

    def seconds(self) -> dict[str, float]:
        """Seconds so far by category."""
        now = self._clock()
        self._seconds[self._now] += now - self._since
        self._since = now
        return dict(self._seconds)

    def move(self, source: str, target: str, seconds: float) -> None:
        """Books `seconds` of `source` on `target` instead."""
        self._seconds[source] -= seconds
        self._seconds[target] += seconds

    def mark(self, step: int) -> None:
        """Remembers how much was spent on steps up to this one, for `lose_since`."""
        self._progress_at[step] = {name: self.seconds()[name] for name in _PROGRESS}

    def lose_since(self, step: int) -> None:
        """Books the steps after `step`, which was marked, as lost."""
        now, then = self.seconds(), self._progress_at[step]
        for name in _PROGRESS:
            self.move(name, "lost", now[name] - then[name])


class GoodputLog:
    """Writes a ledger to RUN/goodput.jsonl, from the first process alone."""

    def __init__(self, workdir: Any, ledger: Ledger, start_step: int):
        self._ledger = ledger
        began = time.time() - sum(ledger.seconds().values())
        self._start = {"began": round(began, 3), "from": start_step}
        self._lines = AppendedLines(workdir, GOODPUT_FILE) if distributed.is_first() else None

    def write(self, step: int) -> None:
        """One line: the step; when (s since 1970) and from which step this start began; seconds."""
        if self._lines is not None:
            seconds = {k: round(v, 3) for k, v in self._ledger.seconds().items()}
            self._lines.append({"step": step, **self._start, "seconds": seconds})

    def close(self) -> None:
        """Releases the file."""
        if self._lines is not None:
            self._lines.close()


def summary(workdir: Any) -> dict[str, float]:
    """Seconds of a run by category, over all its starts; they sum to its wall time.

    Besides CATEGORIES there is "down": from the last line of one start to the beginning of the
    next, which holds what a killed process did after its last line.

    Raises ValueError where no run has written.
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
    """ "step 91.0 %, compile 5.2 %, …", largest first, without what is nothing."""
    whole = sum(seconds.values())
    named = sorted(seconds.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {100 * s / whole:.1f} %" for name, s in named if s > 0.0005 * whole)
