"""Bad steps (not finite, or a loss spike) and the policies for them.

A step is a spike if its loss is above `loss_factor` times, or its gradient norm above `norm_factor`
times, the median over the last `window` good steps. No step is a spike before `window` good steps
are known. The median for step n ends at step n - 2, since the numbers of step n - 1 are still on
the device when step n is dispatched. Checkpoints hold these numbers, so a resumed run has the same
limits.
"""

import collections
import dataclasses
import math
import statistics
from collections.abc import Callable

import jax
import numpy as np

from emu3_jax.config import check_choice
from emu3_jax.train.run.distributed import say

POLICIES = ("off", "skip", "rollback")
# When a step is dispatched, the newest known numbers are those of two steps before.
_LATE = 2


@dataclasses.dataclass(frozen=True)
class DivergenceConfig:
    """What counts as a loss spike, and what to do about it.

    Attributes:
      policy: "off"; "skip": leave out the update of a spike; "rollback": go back to the last
        checkpoint and leave out the data of all steps since ("skip" if there is no checkpoint).
      loss_factor: a loss above this many medians is a spike; 0 ignores losses.
      norm_factor: the same for the gradient norm before clipping; 0 ignores norms.
      window: steps in the median.
      limit: spikes in a row (skip), or returns to the same checkpoint (rollback), that are allowed;
        one more halts the run.
    """

    policy: str = "off"
    loss_factor: float = 2.0
    norm_factor: float = 10.0
    window: int = 100
    limit: int = 3

    def __post_init__(self):
        check_choice("divergence.policy", self.policy, POLICIES)
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
    """The run stopped because of its losses or gradients."""


class Guard:
    """Checks the numbers of each step, one step late, and applies the policies."""

    def __init__(
        self,
        config: DivergenceConfig,
        nonfinite: str,
        max_skipped: int,
        latest_step: Callable[[], int | None],
    ):
        """Makes a guard without any numbers.

        Args:
          config: what counts as a spike, and the policy.
          nonfinite: "halt" or "skip", as in RunConfig.
          max_skipped: most steps in a row that may be not finite, as in RunConfig.
          latest_step: returns the step of the newest complete checkpoint; may block.
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
        """Returns float32 [2]: the loss and the gradient norm above which `step` is a spike."""
        known = [numbers for n, *numbers in self._good if n <= step - _LATE]
        known = known[-self._config.window :]
        limits = [math.inf, math.inf]
        if len(known) == self._config.window:
            factors = (self._config.loss_factor, self._config.norm_factor)
            medians = [statistics.median(column) for column in zip(*known, strict=True)]
            limits = [f * m if f else math.inf for f, m in zip(factors, medians, strict=True)]
        return np.asarray(limits, np.float32)

    def keep(self, step: int, metrics: dict) -> None:
        """Keeps the numbers of a step on the device until `check`."""
        self._unchecked = (step, metrics)

    def check(self) -> bool:
        """Checks the step that was kept; returns True if the run must go back to its checkpoint.

        Raises:
          HaltedError: a policy stops the run.
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
        message = (
            f"step {step} is a spike: loss {loss:.4g} (limit {limits[0]:.4g}), "
            f"gradient norm {norm:.4g} (limit {limits[1]:.4g})"
        )
        if self._config.policy == "rollback" and self._latest_step() is not None:
            say(message)
            return True
        self._bad_in_a_row += 1
        if self._bad_in_a_row > self._config.limit:
            raise HaltedError(f"{message}, {self._bad_in_a_row} in a row; {self._kept()}")
        say(f"{message}; update skipped ({self._bad_in_a_row} in a row)")
        return False

    def _kept(self) -> str:
        latest = self._latest_step()
        return "there is no checkpoint" if latest is None else f"step {latest} is saved"

    def went_back(self, step: int, state: list) -> None:
        """Records a rollback to the checkpoint of `step`; HaltedError if there were too many."""
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
        """Returns the numbers of the last good steps, JSON-able."""
        return [list(numbers) for numbers in self._good]

    def set_state(self, state: list) -> None:
        """Restores what `get_state` returned."""
        self._good.clear()
        self._good.extend((int(step), loss, norm) for step, loss, norm in state)
