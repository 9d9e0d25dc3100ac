"""Progress lines of long work, at most one per interval."""

import math
import time
from collections.abc import Callable

from emu3_jax import compiling

EVERY_S = 10.0


class Progress:
    """Passes lines on to `say`: the first at once, then at most one every `every_s` seconds.

    Without `say` they are dropped.
    """

    def __init__(self, say: Callable[[str], None] | None = None, every_s: float = EVERY_S):
        self._say, self._every_s = say or (lambda line: None), every_s
        self._said = -math.inf

    def line(self, text: str) -> None:
        """Passes `text` on if the last line is at least `every_s` seconds old."""
        if time.monotonic() - self._said >= self._every_s:
            self._say(text)
            self._said = time.monotonic()

    def counter(self, what: str, total: int) -> Callable[[int], None]:
        """Returns a function to call with the number of items just done, of `total`.

        The time left is without that of compiling.
        """
        start, done = time.monotonic() - compiling.seconds(), 0

        def more(count: int) -> None:
            nonlocal done
            done += count
            spent = time.monotonic() - compiling.seconds() - start
            left = spent * (total - done) / max(done, 1)
            self.line(f"{what}: {done} of {total}, about {left:.0f} s left")

        return more
