"""Asking a run to stop: signals, and preemption notices that reach one process of several."""

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils


class Interruption:
    """Turns SIGTERM and Ctrl-C into an answer that the loop asks for between steps.

    A second Ctrl-C raises KeyboardInterrupt as usual. Only the main thread may handle signals; in
    any other they keep their meaning.

    With several processes, SIGTERM is a preemption notice: JAX hears it in whichever process it
    comes to, and all agree on the next step that none of them has begun. Ctrl-C becomes one.

    Attributes:
      number: the signal that this process got; SIGTERM where JAX heard it instead.
    """

    def __init__(self):
        self._several = jax.distributed.is_initialized()
        self._asked = False
        self.number = signal.SIGTERM
        self._previous = {}

    def __enter__(self):
        here = threading.current_thread() is threading.main_thread()
        # JAX handles SIGTERM itself where there are several processes.
        numbers = (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT)
        for number in numbers if here else ():
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self, step: int) -> bool:
        """Whether to save and stop after `step`; every process asks at every step."""
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    @property
    def exit_code(self) -> int:
        """What a process ends with that stopped for the signal: 128 + its number, as in a shell."""
        return 128 + self.number

    def _handle(self, number, frame):
        del frame
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked, self.number = True, number
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"Stopping after this step; Ctrl-C once more stops without saving.\n")
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
