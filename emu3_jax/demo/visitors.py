"""What goes on for each visitor: states as they come, and whether they are still wanted."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

State = TypeVar("State")

# Seconds between two states that are shown.
LEAST_PAUSE = 0.2
# A state may take this part of the time: to decode and send it is work too.
SHARE = 0.25


class Visitors:
    """Who waits for what. A new request of a visitor in a tab takes the place of the last one."""

    def __init__(self):
        self._wanted: dict[tuple[str, str], threading.Event] = {}
        self._lock = threading.Lock()

    def begin(self, visitor: str, tab: str) -> threading.Event:
        """An event that is set when the visitor wants the next request no more."""
        stopped = threading.Event()
        with self._lock:
            before = self._wanted.pop((visitor, tab), None)
            self._wanted[visitor, tab] = stopped
        if before is not None:
            before.set()
        return stopped

    def stop(self, visitor: str, tab: str | None = None) -> None:
        """Ends what a visitor waits for: in a tab, or in all, when they leave."""
        with self._lock:
            here = [key for key in self._wanted if key[0] == visitor and tab in (None, key[1])]
            events = [self._wanted.pop(key) for key in here]
        for event in events:
            event.set()

    def end(self, visitor: str, tab: str, stopped: threading.Event) -> None:
        """Forgets a request that is over."""
        with self._lock:
            if self._wanted.get((visitor, tab)) is stopped:
                del self._wanted[visitor, tab]

    def __len__(self) -> int:
        return len(self._wanted)


class Pace:
    """Says when the next state is due, so that showing them does not slow the work down."""

    def __init__(self):
        self._next = time.monotonic() + LEAST_PAUSE

    def is_due(self) -> bool:
        """Whether enough time has passed since the last state."""
        return time.monotonic() >= self._next

    def shown(self, began: float) -> None:
        """A state was made and shown; it began at this time of `time.monotonic`."""
        now = time.monotonic()
        self._next = now + max(LEAST_PAUSE, (now - began) / SHARE)


def states(work: Callable[[Callable[[State], None]], State]) -> Iterator[State]:
    """What `work(show)` shows while it runs, and its result; its error is raised here.

    It runs on a thread of its own. States that nobody has taken when the next comes are skipped.
    """
    told: queue.SimpleQueue = queue.SimpleQueue()

    def run() -> None:
        try:
            told.put((work(lambda state: told.put((state, None, False))), None, True))
        except BaseException as error:
            told.put((None, error, True))

    threading.Thread(target=run, daemon=True).start()
    is_last = False
    while not is_last:
        state, error, is_last = told.get()
        while not is_last and not told.empty():
            state, error, is_last = told.get()
        if error is not None:
            raise error
        yield state
