"""The source of training batches: an endless iterator whose position can be saved."""

import abc
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np


class Batches(abc.ABC):
    """Batches of the rows that one process reads.

    Attributes:
      share: name of an array → (first of its rows that this process holds, rows of the global
        array). Arrays that are not named are whole in every process.
    """

    share: Mapping[str, tuple[int, int]] = MappingProxyType({})

    def __iter__(self) -> "Batches":
        return self

    def observe(self, state: Any) -> None:  # noqa: B027
        """Takes note of the training state (`train.task.TrainState`) before the next batch.

        For batches that depend on the weights, such as images that the model draws. The update that
        follows donates the state's arrays: keep none of them once `__next__` has returned. The
        device may still be computing them; only a batch that reads them waits.
        """

    @abc.abstractmethod
    def __next__(self) -> dict[str, np.ndarray]:
        """Name → the rows of this process, [rows, …]."""

    @abc.abstractmethod
    def get_state(self) -> dict:
        """The position after the last batch, JSON-able."""

    @abc.abstractmethod
    def set_state(self, state: dict) -> None:
        """Continues after the batch at which `state` was taken; ValueError if it no longer fits."""

    def counts(self) -> dict[str, int]:
        """Name → number of documents so far, in the rows of this process; logged as data/<name>."""
        return {}

    def adapt_state(self, state: dict) -> dict:
        """`state` adapted to these batches, which may differ from those it was taken from."""
        return state

    @staticmethod
    def merge_states(states: Sequence[dict]) -> dict:
        """The state of the global batch from those of all processes, taken after the same batch."""
        assert all(state == states[0] for state in states), (
            f"processes are at different batches: {states}"
        )
        return states[0]

    def check_position(self, state: dict, whats: Mapping[str, str]) -> None:
        """ValueError if `state` is of other data than these.

        Args:
          state: a result of `get_state`.
          whats: key of the state that must be as it is here → what it is otherwise.
        """
        here = self.get_state()
        for name, what in whats.items():
            if state[name] != here[name]:
                raise ValueError(
                    f"the saved data position is of {what}; go on with --allow_changes, or begin "
                    "another run"
                )

    def close(self) -> None:  # noqa: B027
        """Ends worker processes and threads, if any."""
