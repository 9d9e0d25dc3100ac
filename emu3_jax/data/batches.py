"""What training draws its batches from: an endless iterator whose position can be saved."""

import abc
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np


class Batches(abc.ABC):
    """Batches of the rows that one process feeds.

    Attributes:
      share: name of an array → (first of its rows that this process holds, rows of the global
        array). Every process holds the whole of an array that is not named.
    """

    share: Mapping[str, tuple[int, int]] = MappingProxyType({})

    def __iter__(self) -> "Batches":
        return self

    @abc.abstractmethod
    def __next__(self) -> dict[str, np.ndarray]:
        """Name → the rows of this process, [rows, …]."""

    @abc.abstractmethod
    def get_state(self) -> dict:
        """JSON-able position behind the last batch."""

    @abc.abstractmethod
    def set_state(self, state: dict) -> None:
        """Goes on behind the batch at which `state` was taken; ValueError if it fits no more."""

    def adapt_state(self, state: dict) -> dict:
        """`state` made to fit, where these batches are others than those it was taken from."""
        return state

    @staticmethod
    def merge_states(states: Sequence[dict]) -> dict:
        """The state of the global batch from those of all processes, taken behind one batch."""
        assert all(state == states[0] for state in states), f"processes are apart: {states}"
        return states[0]

    def close(self) -> None:  # noqa: B027
        """Ends processes and threads, where there are any."""
