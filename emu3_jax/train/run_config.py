"""The section `run` of a config: how to train any task."""

import dataclasses

from emu3_jax.sharding import MeshConfig
from emu3_jax.train.optimizer import OptimizerConfig
from emu3_jax.train.run.divergence import DivergenceConfig
from emu3_jax.train.run.metrics import LogConfig
from emu3_jax.train.run.retention import CheckpointConfig
from emu3_jax.train.run.watch import WatchConfig


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How to train a task.

    Attributes:
      steps: number of updates of the whole run; the schedule ends there.
      seed: seed of initialisation, dropout and all other randomness of the step.
      accumulation: micro-batches per update; must divide the rows of the batch.
      accumulated_mean: what the loss of an update is the mean of: "tokens" of the whole batch, so
        that the number of micro-batches does not matter, or the means of its "micro_batches", in
        which a token of a micro-batch with few of them counts more (the official fine-tuning
        script, with transformers 4.44).
      ema_decay: decay per step of the averaged weights used for evaluation; 0 keeps none.
      nonfinite: "halt" stops at the first loss or gradient that is not finite; "skip" leaves
        the state unchanged and continues, up to `max_skipped` times in a row.
      max_skipped: most skipped steps in a row before the run halts.
      mesh: sizes of the mesh axes.
      optimizer: the optimizer and its schedule.
      divergence: what happens at a loss spike.
      checkpoint: when to save and which checkpoints to keep.
      log: what to log and where.
      watch: heartbeat, hang detection and profiler.
    """

    steps: int
    seed: int = 0
    accumulation: int = 1
    accumulated_mean: str = "tokens"
    ema_decay: float = 0.0
    nonfinite: str = "halt"
    max_skipped: int = 20
    mesh: MeshConfig = MeshConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    divergence: DivergenceConfig = DivergenceConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    watch: WatchConfig = WatchConfig()

    def __post_init__(self):
        for name, least in (("steps", 1), ("accumulation", 1), ("max_skipped", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if self.accumulated_mean not in ("tokens", "micro_batches"):
            raise ValueError(
                f"accumulated_mean must be tokens or micro_batches, got {self.accumulated_mean!r}"
            )
        if self.nonfinite not in ("halt", "skip"):
            raise ValueError(f"nonfinite must be halt or skip, got {self.nonfinite!r}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
