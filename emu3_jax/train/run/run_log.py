"""Log lines and metrics of a run, one step late, and where its time went."""

import os
from collections.abc import Callable

import jax

from emu3_jax.train.run import metrics as metrics_lib
from emu3_jax.train.run import readable
from emu3_jax.train.run.distributed import say
from emu3_jax.train.run.goodput import GoodputLog, Ledger, shares


class Report:
    """Fetches the numbers of each step from the device and writes them to the logs."""

    def __init__(
        self,
        workdir: str | os.PathLike,
        task,
        run,
        schedule: Callable[[int], float],
        start_step: int,
        *,
        ledger: Ledger,
        note: Callable[[int, dict], None],
        run_config: dict,
    ):
        """Opens the logs.

        Args:
          workdir: run directory.
          task: a Task; its `unit`, `headline`, `units_per_batch` and `flops_per_unit` are used.
          run: a RunConfig.
          schedule: number of updates done → learning rate.
          start_step: number of updates done.
          ledger: where this process's time went.
          note: called with (step, numbers) for each line, past lines of the run included, in every
            process.
          run_config: the resolved config, for Weights & Biases.
        """
        self._task, self._run, self._schedule, self._note = task, run, schedule, note
        self.writer = metrics_lib.MetricsWriter(workdir, run.log, run_config, start_step)
        self.ledger, self._goodput = ledger, GoodputLog(workdir, ledger, start_step)
        self._accumulator = metrics_lib.Accumulator()
        # Sums of dispatched steps, on the device until `log` fetches them.
        self._unlogged: tuple[int, dict, dict] | None = None
        if start_step and run.checkpoint.best_metric:
            for row in metrics_lib.read_metrics(workdir):
                note(row["step"], row)
        self._first = start_step + 1
        # Counting may trace the model, so only if the device's peak is known.
        known = metrics_lib.peak_flops(jax.devices()[0].device_kind)
        self._flops = task.flops_per_unit() if known else 0.0
        self._measure_from(start_step)

    def _measure_from(self, step: int) -> None:
        units = self._task.units_per_batch()
        self._throughput = metrics_lib.Throughput(step, self._run.steps, units)

    def keep(self, step: int, metrics: dict, counts: dict[str, int]) -> None:
        """Keeps the numbers of a step on the device; `log` fetches them if a line is due.

        `counts` are those of the data so far (`Batches.counts`), in this process.
        """
        self._accumulator.add(metrics)
        if step % self._run.log.every == 0 or step in (self._first, self._run.steps):
            self._unlogged = (step, self._accumulator.take(), counts)

    def log(self) -> None:
        """Writes the log line if one is due."""
        if self._unlogged is None:
            return
        (step, sums, counts), self._unlogged = self._unlogged, None
        values = metrics_lib.means(sums)
        values |= {f"data/{name}": count for name, count in counts.items()}
        rate, to_go = self._throughput.rate(step)
        chips, unit = jax.device_count(), self._task.unit
        values["learning_rate"] = float(self._schedule(step - 1))
        values[f"{unit}_per_second"] = rate
        values[f"{unit}_per_second_per_chip"] = rate / chips
        speed = f"{rate:,.0f} {unit}/s" + (f", {rate / chips:,.0f} per chip" if chips > 1 else "")
        mfu = metrics_lib.mfu(rate * self._flops)
        if mfu:
            values["mfu"] = mfu
            speed += f", MFU {100 * mfu:.1f} %"
        self.write(step, values | metrics_lib.memory())
        shown = readable.line(values, self._task.headline, rest=False)
        to_go = metrics_lib.duration(to_go)
        say(f"step {step}/{self._run.steps} {shown} | {speed} | {to_go} to go")
        self.book(step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes the numbers of `step` to the metrics."""
        self.writer.write(step, values)
        self._note(step, values)

    def book(self, step: int) -> None:
        """Writes a line of the ledger after dispatching `step`."""
        self._goodput.write(step)

    def pause(self, seconds: float) -> None:
        """Leaves `seconds` out of the next throughput."""
        self._throughput.pause(seconds)

    def rewind(self, step: int) -> None:
        """Goes back to `step`: drops numbers not logged yet, supersedes those logged since."""
        self._accumulator.take()
        self._unlogged = None
        self.writer.rewind(step)
        self._measure_from(step)

    def finish(self, step: int) -> None:
        """Prints where the time went."""
        self.book(step)
        say(f"time since the start: {shares(self.ledger.seconds())}")

    def close(self) -> None:
        """Closes the logs."""
        self.writer.close()
        self._goodput.close()
