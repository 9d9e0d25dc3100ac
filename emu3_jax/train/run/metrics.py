"""Logs of a run's numbers: metrics.jsonl, TensorBoard and Weights & Biases; throughput and MFU."""

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
from emu3_jax.foreign import optional
from emu3_jax.train.run import distributed

METRICS_FILE = "metrics.jsonl"
# Key of the lines that mark after which step the run resumed.
RESUMED = "resumed"


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What to log and where.

    Attributes:
      every: steps between log lines; the numbers are means over those steps.
      tensorboard: also write TensorBoard event files.
      wandb_project: Weights & Biases project (needs the wandb package); "" for none.
    """

    every: int = 20
    tensorboard: bool = True
    wandb_project: str = ""

    def __post_init__(self):
        if self.every < 1:
            raise ValueError(f"log.every must be 1 or more, got {self.every}")


class MetricsWriter:
    """Writes scalars to workdir/metrics.jsonl and the other sinks; in process 0 only."""

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
          config: which sinks to open.
          run_config: the resolved config, for Weights & Biases.
          start_step: number of updates done; it supersedes what an earlier process logged about
            later steps.

        Raises:
          MissingPackageError: a sink needs a package that is not installed.
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
        """Marks what was written about steps after `step` as superseded; they will be repeated."""
        self._superseded_after = step

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes one line; values that are not finite become null."""
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

    def write_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds an image uint8 [H, W, 3] to TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, image, step)

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
    """tensorboardX's writer, made at the first number, so that no file exists before."""

    def __init__(self, workdir: str | os.PathLike, start_step: int):
        self._folder = os.fspath(epath.Path(workdir) / "tensorboard")
        self._start_step = start_step
        board = optional("tensorboardX", "log.tensorboard=True", "-r requirements.txt")
        self._make = board.SummaryWriter

    @functools.cached_property
    def _writer(self):
        try:
            return self._make(self._folder, purge_step=self._start_step + 1)
        except ImportError as error:  # a bucket needs an extra package
            raise ValueError(f"TensorBoard cannot write to {self._folder}: {error}") from error

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        if "_writer" in self.__dict__:
            self._writer.close()


def _start_wandb(workdir: str | os.PathLike, project: str, run_config: dict):
    """Starts or resumes a Weights & Biases run; its id is kept in the run directory."""
    wandb = optional("wandb", f"log.wandb_project={project!r}", "wandb")
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
    """Returns the lines of workdir/metrics.jsonl in step order, one per step.

    A run that resumes, or goes back after a loss spike, writes a line that supersedes the earlier
    lines about later steps. Lines of the same step are merged.
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
    """Sums of (sum, count) metrics over the steps since the last log line.

    The sums stay on the device until `means` fetches what `take` returned. The loop does that one
    step late, so that the device does not wait for the host.
    """

    def __init__(self):
        self._sums: dict | None = None
        self._add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))

    def add(self, metrics: dict) -> None:
        """Adds one step's device metrics."""
        self._sums = metrics if self._sums is None else self._add(self._sums, metrics)

    def take(self) -> dict | None:
        """Returns the sums, on the device, and resets them."""
        sums, self._sums = self._sums, None
        return sums


def means(sums: dict) -> dict[str, float]:
    """Fetches (sum, count) pairs and returns name → mean, without names of count 0."""
    host = jax.device_get(sums)
    return {name: float(s / c) for name, (s, c) in host.items() if c > 0}


class Throughput:
    """Units per second and remaining time, without the time that the loop spends outside steps."""

    def __init__(self, start_step: int, total_steps: int, units_per_step: int):
        self._total = total_steps
        self._units = units_per_step
        self._mark = (start_step, time.perf_counter())
        self._paused = 0.0

    def pause(self, seconds: float) -> None:
        """Leaves `seconds` out of the next rate."""
        self._paused += seconds

    def rate(self, step: int) -> tuple[float, float]:
        """Returns (units per second since the last call, seconds to go)."""
        old_step, old_time = self._mark
        now = time.perf_counter()
        elapsed = max(1e-9, now - old_time - self._paused)
        self._mark, self._paused = (step, now), 0.0
        steps_per_second = (step - old_step) / elapsed
        to_go = (self._total - step) / steps_per_second if steps_per_second else math.inf
        return steps_per_second * self._units, to_go


# Dense bf16 peak in FLOP/s of one JAX device, from the vendors' data sheets. A device is a chip,
# except for TPU7x, where a chip (2,307 TFLOP/s) is two devices.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak FLOP/s of a JAX `device_kind`; None if it is unknown (CPU)."""
    matches = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


def mfu(flops_per_second: float) -> float | None:
    """Returns the share of all devices' peak FLOP/s, or None if the peak is unknown (CPU).

    Args:
      flops_per_second: model FLOPs of all devices, as `Task.flops_per_unit` counts them.
    """
    peak = peak_flops(jax.devices()[0].device_kind)
    return None if peak is None else flops_per_second / (peak * jax.device_count())


def memory() -> dict[str, float]:
    """Returns metric name → peak GiB in use, for each local device whose backend reports it."""
    found = {}
    for device in jax.local_devices():
        peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
        if peak is not None:
            found[f"memory/device_{device.id}_peak_gib"] = peak / 2**30
    return found


def duration(seconds: float) -> str:
    """Returns "1h 05m", "4m 10s" or "9s"; "?" if not finite."""
    if not math.isfinite(seconds):
        return "?"
    seconds = int(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m {seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
