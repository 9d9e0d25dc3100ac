"""Requests to stop a run: signals, and preemption notices that reach one of several processes."""

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils


class Interruption:
    """Turns SIGTERM and Ctrl-C into a request that the loop checks between steps.

    A second Ctrl-C raises KeyboardInterrupt as usual. Only the main thread can handle signals; in
    other threads this object leaves them alone.

    With several processes, SIGTERM is a preemption notice: JAX receives it in any process, and all
    processes agree to stop after the same step, one that none of them has begun. Ctrl-C is
    forwarded as SIGTERM.

    Attributes:
      number: the signal that this process got; SIGTERM if JAX received it instead.
    """

    def __init__(self):
        self._several = jax.distributed.is_initialized()
        self._asked = False
        self.number = signal.SIGTERM
        self._previous = {}

    def __enter__(self):
        here = threading.current_thread() is threading.main_thread()
        # With several processes, JAX handles SIGTERM itself.
        numbers = (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT)
        for number in numbers if here else ():
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self, step: int) -> bool:
        """Returns whether to save and stop after `step`; every process calls it every step."""
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    @property
    def exit_code(self) -> int:
        """The exit code after the signal: 128 + its number, as in a shell."""
        return 128 + self.number

    def _handle(self, number, frame):
        del frame
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked, self.number = True, number
        # Not print: the signal may have interrupted a print.
        os.write(2, b"Stopping after this step; Ctrl-C once more stops without saving.\n")
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
