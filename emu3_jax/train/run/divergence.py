"""Steps whose numbers are bad, not finite or a loss spike, and what is done about them.

A step is a spike if its loss is above `loss_factor` times, or its gradient norm above `norm_factor`
times, the median of the last `window` steps that were none. Nothing is judged before so many are
known. What step n is measured by stops at step n - 2, since the numbers of step n - 1 are still on
the device when step n is dispatched; this also makes it the same in a run that was resumed, for
checkpoints hold the numbers.
"""

import collections
import dataclasses
import math
import statistics
from collections.abc import Callable

import jax
import numpy as np

from emu3_jax.train.run.distributed import say

POLICIES = ("off", "skip", "rollback")
# Numbers of the step before are not known yet when a step is dispatched.
_LATE = 2


@dataclasses.dataclass(frozen=True)
class DivergenceConfig:
    """What counts as a loss spike, and what follows.

    Attributes:
      policy: "off"; "skip": the update of a spike is not made; "rollback": the run goes back to its
        last checkpoint and leaves out the data of all steps since (without one: as "skip").
      loss_factor: above so many medians a loss is a spike; 0: losses are not looked at.
      norm_factor: likewise for the norm of the gradient, before clipping.
      window: steps in the median.
      limit: the run halts at one spike more than this in a row (skip), or one more return to the
        same checkpoint (rollback).
    """

    policy: str = "off"
    loss_factor: float = 2.0
    norm_factor: float = 10.0
    window: int = 100
    limit: int = 3

    def __post_init__(self):
        if self.policy not in POLICIES:
            raise ValueError(
                f"divergence.policy must be one of {', '.join(POLICIES)}, got {self.policy!r}"
            )
        for name in ("loss_factor", "norm_factor"):
            value = getattr(self, name)
            if value != 0 and value <= 1:
                raise ValueError(f"divergence.{name} must be above 1, or 0 for none, got {value}")
        for name, least in (("window", 1), ("limit", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"divergence.{name} must be {least} or more, got {getattr(self, name)}"
                )


class HaltedError(ValueError):
    """The run stopped because its losses or gradients are no good."""


class Guard:
    """Looks at the numbers of each step, one step late, and applies the policies."""

    def __init__(
        self,
        config: DivergenceConfig,
        nonfinite: str,
        max_skipped: int,
        latest_step: Callable[[], int | None],
    ):
        """Makes a guard that has seen nothing.

        Args:
          config: what a spike is and what follows.
          nonfinite: "halt" or "skip", see loop.RunConfig.
          max_skipped: likewise.
          latest_step: the step of the newest complete checkpoint, for which it may wait.
        """
        self._config, self._latest_step = config, latest_step
        self._nonfinite, self._max_skipped = nonfinite, max_skipped
        self.active = config.policy != "off"
        self._good: collections.deque[tuple[int, float, float]] = collections.deque(
            maxlen=config.window + _LATE
        )
        self._unchecked: tuple[int, dict] | None = None
        self._bad_in_a_row = 0
        self._returned_to, self._returns = -1, 0

    def limits(self, step: int) -> np.ndarray:
        """Float32 [2]: above which loss, and above which gradient norm, `step` is a spike."""
        known = [numbers for n, *numbers in self._good if n <= step - _LATE]
        known = known[-self._config.window :]
        limits = [math.inf, math.inf]
        if len(known) == self._config.window:
            factors = (self._config.loss_factor, self._config.norm_factor)
            medians = [statistics.median(column) for column in zip(*known, strict=True)]
            limits = [f * m if f else math.inf for f, m in zip(factors, medians, strict=True)]
        return np.asarray(limits, np.float32)

    def keep(self, step: int, metrics: dict) -> None:
        """Leaves the numbers of a step on the device until `check`."""
        self._unchecked = (step, metrics)

    def check(self) -> bool:
        """Judges the step that was kept; True if the run has to go back to its checkpoint.

        Raises HaltedError where a policy says so.
        """
        if self._unchecked is None:
            return False
        (step, metrics), self._unchecked = self._unchecked, None
        names = ("nonfinite", "empty")
        names += ("spike", "loss", "gradient_norm") if self.active else ()
        host = jax.device_get({name: metrics[name] for name in names})
        numbers = {name: float(s) / (float(c) or 1.0) for name, (s, c) in host.items()}
        if numbers["nonfinite"]:
            self._not_finite(step)
            return False
        if numbers.get("spike"):
            return self._spike(step, numbers["loss"], numbers["gradient_norm"])
        self._bad_in_a_row = 0
        if self.active and not numbers["empty"]:
            self._good.append((step, numbers["loss"], numbers["gradient_norm"]))
        return False

    def _not_finite(self, step: int) -> None:
        self._bad_in_a_row += 1
        if self._nonfinite == "halt" or self._bad_in_a_row > self._max_skipped:
            raise HaltedError(
                f"loss or gradient of step {step} is not finite (policy {self._nonfinite}, "
                f"{self._bad_in_a_row} in a row); {self._kept()}"
            )
        say(f"step {step}: not finite, update skipped ({self._bad_in_a_row} in a row)")

    def _spike(self, step: int, loss: float, norm: float) -> bool:
        limits = self.limits(step)
        told = (
            f"step {step} is a spike: loss {loss:.4g} (limit {limits[0]:.4g}), "
            f"gradient norm {norm:.4g} (limit {limits[1]:.4g})"
        )
        if self._config.policy == "rollback" and self._latest_step() is not None:
            say(told)
            return True
        self._bad_in_a_row += 1
        if self._bad_in_a_row > self._config.limit:
            raise HaltedError(f"{told}, {self._bad_in_a_row} in a row; {self._kept()}")
        say(f"{told}; update skipped ({self._bad_in_a_row} in a row)")
        return False

    def _kept(self) -> str:
        latest = self._latest_step()
        return "there is no checkpoint" if latest is None else f"step {latest} is saved"

    def went_back(self, step: int, state: list) -> None:
        """The run goes on from the checkpoint of `step`; HaltedError if it did too often."""
        self._returns = self._returns + 1 if step == self._returned_to else 1
        self._returned_to = step
        if self._returns > self._config.limit:
            raise HaltedError(
                f"loss spikes led back to step {step} {self._config.limit} times, and there is "
                f"another; {self._kept()}"
            )
        self._unchecked = None
        self.set_state(state)

    def get_state(self) -> list:
        """The numbers of the last good steps, JSON-able."""
        return [list(numbers) for numbers in self._good]

    def set_state(self, state: list) -> None:
        """Goes on where `state` was taken."""
        self._good.clear()
        self._good.extend((int(step), loss, norm) for step, loss, norm in state)
