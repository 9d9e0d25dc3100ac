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


def announce(program: Hashable, name: str) -> bool:
    """Counts and logs a program that is not known yet, before its first call compiles it.

    Args:
      program: what decides that JAX compiles anew: the function, and the shapes.
      name: what the program does, for the log.

    Returns:
      Whether it is new.
    """
    if program in _known:
        return False
    _known.add(program)
    _spent.programs += 1
    usual = f"the last one took {_spent.last:.0f} s" if _spent.seconds else "up to some minutes"
    log.info("compiling program %d, %s; %s", _spent.programs, name, usual)
    return True


@contextlib.contextmanager
def call(program: Hashable, name: str) -> Iterator[None]:
    """Surrounds a short call of a jitted function: its first call is announced, and timed."""
    if not announce(program, name):
        yield
        return
    start = time.monotonic()
    try:
        yield
    finally:
        _spent.last = time.monotonic() - start
        _spent.seconds += _spent.last
