"""Progress lines of long evaluations, at most one per interval."""

import time
from collections.abc import Callable

EVERY_S = 10.0


class Progress:
    """Passes lines on to `say`, the first after `every_s` seconds and at most one per `every_s`."""

    def __init__(self, say: Callable[[str], None] = lambda line: None, every_s: float = EVERY_S):
        self._say, self._every_s = say, every_s
        self._said = time.monotonic()

    def line(self, text: str) -> None:
        """Passes `text` on if the last line is at least `every_s` seconds old."""
        if time.monotonic() - self._said >= self._every_s:
            self._say(f"  {text}")
            self._said = time.monotonic()

    def counter(self, what: str, total: int) -> Callable[[int], None]:
        """Returns a function to call with the number of items just done, of `total`."""
        start, done = time.monotonic(), 0

        def more(count: int) -> None:
            nonlocal done
            done += count
            left = (time.monotonic() - start) * (total - done) / max(done, 1)
            self.line(f"{what}: {done} of {total}, about {left:.0f} s left")

        return more
