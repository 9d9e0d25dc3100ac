"""Compilation in this process: announced before it begins, counted, and timed.

Estimates of the time left leave it out: `seconds` is what to subtract.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Hashable, Iterator

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)  # in every command: it explains minutes of silence


@dataclasses.dataclass
class _Spent:
    programs: int = 0
    seconds: float = 0.0
    last: float = 0.0


_spent = _Spent()
_known: set[Hashable] = set()


def seconds() -> float:
    """Seconds spent so far in first calls of programs, which compile them."""
    return _spent.seconds


def programs() -> int:
    """Number of programs compiled so far."""
    return _spent.programs


@contextlib.contextmanager
def call(program: Hashable, name: str) -> Iterator[None]:
    """Surrounds a call of a jitted function; the first call of a program is logged and timed.

    Args:
      program: what decides that JAX compiles anew: the function, and the shapes.
      name: what the program does, for the log.
    """
    if program in _known:
        yield
        return
    _known.add(program)
    _spent.programs += 1
    usual = f"the last one took {_spent.last:.0f} s" if _spent.seconds else "up to some minutes"
    log.info("compiling program %d, %s; %s", _spent.programs, name, usual)
    start = time.monotonic()
    try:
        yield
    finally:
        _spent.last = time.monotonic() - start
        _spent.seconds += _spent.last
