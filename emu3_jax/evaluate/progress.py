"""What evaluators that take long say while they work: a line now and then."""

import time
from collections.abc import Callable

EVERY_S = 10.0


class Progress:
    """Hands lines on to `say`, the first after `every_s` seconds and no two closer together."""

    def __init__(self, say: Callable[[str], None] = lambda line: None, every_s: float = EVERY_S):
        self._say, self._every_s = say, every_s
        self._said = time.monotonic()

    def line(self, text: str) -> None:
        """Says `text` if nothing was said for long."""
        if time.monotonic() - self._said >= self._every_s:
            self._say(f"  {text}")
            self._said = time.monotonic()

    def counter(self, what: str, total: int) -> Callable[[int], None]:
        """To be called with how many more of `total` are done; says that and the time left."""
        start, done = time.monotonic(), 0

        def more(count: int) -> None:
            nonlocal done
            done += count
            left = (time.monotonic() - start) * (total - done) / max(done, 1)
            self.line(f"{what}: {done} of {total}, about {left:.0f} s left")

        return more
