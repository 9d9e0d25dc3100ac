"""What the loop calls at intervals: the protocol of evaluation, pictures and the like."""

from typing import Protocol

from emu3_jax.train.metrics import MetricsWriter
from emu3_jax.train.state import TrainState


class Callback(Protocol):
    """Something that happens at intervals: evaluation, pictures.

    Where it must not be missed it has `done(step) -> bool` as well: whether what it did after that
    step is kept. It is asked when a run resumes at a step that was due, and called if it is not.

    Attributes:
      every: steps between calls; 0 for after the last step only.
    """

    every: int

    def __call__(self, step: int, state: TrainState, writer: MetricsWriter) -> dict:
        """Returns metrics to log. Every process calls it, and the first one logs.

        Args:
          step: number of updates done.
          state: after these updates; its arrays are gone with the next update, so keep none.
          writer: for pictures.
        """
