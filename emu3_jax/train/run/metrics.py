"""Where numbers go: one JSON line a log step, TensorBoard, and Weights & Biases if asked for."""

import dataclasses
import functools
import math
import os
import time
import uuid
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from emu3_jax.files import AppendedLines, read_lines, write_atomically
from emu3_jax.train.run import distributed

METRICS_FILE = "metrics.jsonl"
# Key of the lines that say behind which step the run went on.
RESUMED = "resumed"


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What is logged and where.

    Attributes:
      every: steps between log lines; the numbers are means over those steps.
      tensorboard: also write TensorBoard event files.
      wandb_project: Weights & Biases project; empty for none (needs the wandb package).
    """

    every: int = 20
    tensorboard: bool = True
    wandb_project: str = ""

    def __post_init__(self):
        if self.every < 1:
            raise ValueError(f"log.every must be 1 or more, got {self.every}")


class MetricsWriter:
    """Appends scalars to workdir/metrics.jsonl and the other sinks; process 0 only."""

    def __init__(
        self,
        workdir: str | os.PathLike,
        config: LogConfig,
        run_config: dict,
        start_step: int = 0,
    ):
        """Opens the sinks.

        Args:
          workdir: run directory.
          config: which sinks.
          run_config: the resolved config, for Weights & Biases.
          start_step: updates done so far; what an earlier process logged after it is superseded.

        Raises:
          ValueError: a sink needs a package that is not installed.
        """
        self._active = distributed.is_first()
        self._board = self._wandb = None
        if not self._active:
            return
        if config.wandb_project:
            self._wandb = _start_wandb(workdir, config.wandb_project, run_config)
        if config.tensorboard:
            self._board = _TensorBoard(workdir, start_step)
        self._lines = AppendedLines(workdir, METRICS_FILE)
        self._superseded_after = start_step if self._lines.continued else None

    def rewind(self, step: int) -> None:
        """What was written so far about later steps is superseded: they will be done again."""
        self._superseded_after = step

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes one line; values that are not finite are written as null."""
        if not self._active:
            return
        if self._superseded_after is not None:
            self._lines.append({"step": self._superseded_after, RESUMED: True})
            self._superseded_after = None
        finite = {name: float(v) for name, v in values.items() if math.isfinite(v)}
        self._lines.append({"step": step} | {name: finite.get(name) for name in values})
        if self._board is not None:
            for name, value in finite.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(finite, step=step)

    def write_picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Adds a picture uint8 [H, W, 3] to TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, picture, step)

    def close(self) -> None:
        """Flushes and closes every sink."""
        if not self._active:
            return
        self._lines.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


class _TensorBoard:
    """tensorboardX's writer, which makes its file at once; this one does with the first number."""

    def __init__(self, workdir: str | os.PathLike, start_step: int):
        self._folder = os.fspath(epath.Path(workdir) / "tensorboard")
        self._start_step = start_step

    @functools.cached_property
    def _writer(self):
        from tensorboardX import SummaryWriter

        try:
            return SummaryWriter(self._folder, purge_step=self._start_step + 1)
        except ImportError as error:  # a bucket needs a package of its own
            raise ValueError(f"TensorBoard cannot write to {self._folder}: {error}") from error

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)

    def add_image(self, name: str, picture: np.ndarray, step: int) -> None:
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        if "_writer" in self.__dict__:
            self._writer.close()


def _start_wandb(workdir: str | os.PathLike, project: str, run_config: dict):
    """A Weights & Biases run; its id is kept in the run directory, so that resuming goes on."""
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            f"log.wandb_project={project!r} needs the wandb package: pip install wandb"
        ) from error
    id_file = epath.Path(workdir) / "wandb_id"
    if not id_file.exists():
        write_atomically(id_file, uuid.uuid4().hex)
    return wandb.init(
        project=project,
        dir=os.fspath(workdir),
        config=run_config,
        id=id_file.read_text().strip(),
        resume="allow",
    )


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of workdir/metrics.jsonl in step order, one a step.

    A run that resumes, or goes back after a loss spike, says so in a line of its own: what was
    logged about later steps is superseded. Lines of the same step are merged.
    """
    rows: list[dict] = []
    for line in read_lines(workdir, METRICS_FILE):
        if RESUMED in line:
            while rows and rows[-1]["step"] > line["step"]:
                rows.pop()
        elif rows and rows[-1]["step"] == line["step"]:
            rows[-1] |= line
        else:
            rows.append(line)
    return rows


class Accumulator:
    """Means of (sum, count) metrics over the steps since the last log line.

    The sums stay on the device until `means` fetches what `take` returned, which the loop does one
    step late, so that the device never waits for the host.
    """

    def __init__(self):
        self._sums: dict | None = None
        self._add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))

    def add(self, metrics: dict) -> None:
        """Adds one step's device metrics."""
        self._sums = metrics if self._sums is None else self._add(self._sums, metrics)

    def take(self) -> dict | None:
        """Returns the device sums and starts anew."""
        sums, self._sums = self._sums, None
        return sums


def means(sums: dict) -> dict[str, float]:
    """Fetches (sum, count) pairs and divides; a name that counted nothing is left out."""
    host = jax.device_get(sums)
    return {name: float(s / c) for name, (s, c) in host.items() if c > 0}


class Progress:
    """Throughput and time to go, paused while the loop does other things than stepping."""

    def __init__(self, start_step: int, total_steps: int, units_per_step: int):
        self._total = total_steps
        self._units = units_per_step
        self._mark = (start_step, time.perf_counter())
        self._paused = 0.0

    def pause(self, seconds: float) -> None:
        """Leaves `seconds` out of the next rate."""
        self._paused += seconds

    def rate(self, step: int) -> tuple[float, float]:
        """(units per second since the last call, seconds to go)."""
        old_step, old_time = self._mark
        now = time.perf_counter()
        elapsed = max(1e-9, now - old_time - self._paused)
        self._mark, self._paused = (step, now), 0.0
        steps_per_second = (step - old_step) / elapsed
        to_go = (self._total - step) / steps_per_second if steps_per_second else math.inf
        return steps_per_second * self._units, to_go


# Dense bf16 peak, FLOP/s of one JAX device, from the makers' data sheets. A device is a chip, but
# for TPU7x, whose chips (2,307 TFLOP/s) show as two.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s of one device of a kind as JAX calls it; None where the peak is unknown (CPU)."""
    matches = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


def mfu(flops_per_second: float) -> float | None:
    """Share of the devices' peak, or None where the peak is unknown (CPU).

    The caller counts model FLOPs: 6 per matmul parameter and token, causal half of attention.
    """
    peak = peak_flops(jax.devices()[0].device_kind)
    return None if peak is None else flops_per_second / (peak * jax.device_count())


def memory() -> dict[str, float]:
    """GiB in use at most so far, for each device of this process whose backend reports it."""
    found = {}
    for device in jax.local_devices():
        peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
        if peak is not None:
            found[f"memory/device_{device.id}_peak_gib"] = peak / 2**30
    return found


def duration(seconds: float) -> str:
    """ "1h 05m", "4m 10s", "9s"; "?" when unknown."""
    if not math.isfinite(seconds):
        return "?"
    seconds = int(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m {seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
