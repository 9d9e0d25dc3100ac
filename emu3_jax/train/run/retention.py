"""Which checkpoints to keep: the newest, those at round steps, and the best by a metric."""

import dataclasses
import math
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save and what to keep.

    Attributes:
      every: steps between saves; the last step is always saved.
      keep: number of newest checkpoints to keep.
      keep_every: checkpoints at multiples of this step are kept for ever; 0 for none.
      best_metric: name in metrics.jsonl, such as "validation/likelihood/nats_all". The best
        checkpoints by it are kept too, among the steps at which it was logged; "" for none.
      best_mode: whether the best value is the "min" or the "max".
      keep_best: number of best checkpoints to keep.
    """

    every: int = 500
    keep: int = 2
    keep_every: int = 0
    best_metric: str = ""
    best_mode: str = "min"
    keep_best: int = 1

    def __post_init__(self):
        for name, least in (("every", 1), ("keep", 1), ("keep_every", 0), ("keep_best", 1)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"checkpoint.{name} must be {least} or more, got {getattr(self, name)}"
                )
        if self.best_mode not in ("min", "max"):
            raise ValueError(f"checkpoint.best_mode must be min or max, got {self.best_mode!r}")


@dataclasses.dataclass
class Retention:
    """Orbax's PreservationPolicy for a CheckpointConfig.

    Attributes:
      config: what to keep.
      scores: step → value of `config.best_metric`.
    """

    config: CheckpointConfig
    scores: dict[int, float] = dataclasses.field(default_factory=dict)

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Returns for each checkpoint, oldest first, whether Orbax must keep it."""
        del context
        config, steps = self.config, [checkpoint.step for checkpoint in checkpoints]
        sign = 1 if config.best_mode == "min" else -1
        scored = sorted(
            (step for step in steps if step in self.scores),
            key=lambda step: (sign * self.scores[step], -step),
        )
        kept = {*steps[-config.keep :], *scored[: config.keep_best]}
        every = config.keep_every
        return [step in kept or bool(every and step % every == 0) for step in steps]

    def note(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records `config.best_metric` of a step, if `metrics` has it and it is finite."""
        value = metrics.get(self.config.best_metric)
        if value is not None and math.isfinite(value):
            self.scores[step] = value
