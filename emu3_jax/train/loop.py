"""The one training loop, for every task.

Order of one step: draw batch n, dispatch update n, then look at the metrics of update n-1, so the
host never makes the device wait. A run starts from the first of these that exists:
  1. the newest complete checkpoint in its own directory (state and data position),
  2. a fresh initialisation from the seed, of which `start` may replace what it likes.
Nothing else decides where a run begins.
"""

import contextlib
import dataclasses
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import numpy as np

from emu3_jax import sharding
from emu3_jax.sharding import MeshConfig
from emu3_jax.train import metrics as metrics_lib
from emu3_jax.train.checkpoint import CheckpointConfig, Checkpoints, check_same_tree
from emu3_jax.train.metrics import LogConfig
from emu3_jax.train.optimizer import OptimizerConfig, make_optimizer
from emu3_jax.train.state import (
    Task,
    TrainState,
    abstract_state,
    average_start,
    init_state,
    make_train_step,
)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How a task is trained.

    Attributes:
      steps: updates of the whole run; the schedule ends there.
      seed: of initialisation, dropout and everything else random in the step.
      accumulation: micro-batches per update; the batch must be a multiple of it.
      ema_decay: of the averaged weights used for evaluation; 0 keeps none.
      nonfinite: "halt" stops at the first loss or gradient that is not finite; "skip" leaves
        the state as it was and goes on, up to `max_skipped` times in a row.
      max_skipped: see `nonfinite`.
    """

    steps: int
    seed: int = 0
    accumulation: int = 1
    ema_decay: float = 0.0
    nonfinite: str = "halt"
    max_skipped: int = 20
    mesh: MeshConfig = MeshConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    def __post_init__(self):
        for name, least in (("steps", 1), ("accumulation", 1), ("max_skipped", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if self.nonfinite not in ("halt", "skip"):
            raise ValueError(f"nonfinite must be halt or skip, got {self.nonfinite!r}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")


class Callback(Protocol):
    """Something that happens at intervals: evaluation, pictures.

    Where it must not be missed it has `done(step) -> bool` as well: whether what it did after that
    step is kept. It is asked when a run resumes at a step that was due, and called if it is not.

    Attributes:
      every: steps between calls; 0 for after the last step only.
    """

    every: int

    def __call__(self, step: int, state: TrainState, writer: metrics_lib.MetricsWriter) -> dict:
        """Returns metrics to log.

        Args:
          step: number of updates done.
          state: after these updates; its arrays are gone with the next update, so keep none.
          writer: for pictures.
        """


class Start(Protocol):
    """What a fresh run begins from instead of random weights."""

    def __call__(self, variables: dict) -> dict:
        """Returns the same tree with other values.

        Args:
          variables: {"params": …, other collections} as initialised, jax arrays on the mesh. Leaves
            of the result may be these, jax arrays laid out in any way, or numpy arrays.
        """


class Interruption:
    """Turns SIGTERM and Ctrl-C into a flag that the loop reads between steps.

    A second Ctrl-C raises KeyboardInterrupt as usual. Only the main thread may handle signals; in
    any other they keep their meaning.
    """

    def __init__(self):
        self.requested = False
        self._previous = {}

    def __enter__(self):
        here = threading.current_thread() is threading.main_thread()
        for number in (signal.SIGTERM, signal.SIGINT) if here else ():
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        del frame
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"Stopping after this step; Ctrl-C once more stops without saving.\n")


class HaltedError(ValueError):
    """The run stopped because a loss or gradient was not finite."""


def train(
    task: Task,
    run: RunConfig,
    workdir: str | pathlib.Path,
    *,
    callbacks: Sequence[Callback] = (),
    start: Start | None = None,
    run_config: dict | None = None,
    on_begin: Callable[[], None] = lambda: None,
) -> TrainState | None:
    """Trains until `run.steps`, or until interrupted; returns the final state.

    Args:
      task: what is trained.
      run: how.
      workdir: run directory; holds checkpoints/, metrics.jsonl, tensorboard/.
      callbacks: called at their interval and after the last step.
      start: what the weights begin as, see Start; not asked where the directory has a checkpoint.
      run_config: the resolved config, for Weights & Biases.
      on_begin: called when the first update is dispatched, and nothing can be refused any more.

    Returns:
      The state after the last step, or None if the run was interrupted (SIGTERM, Ctrl-C) after
      saving; running again goes on from there.

    Raises:
      HaltedError: by the policy `run.nonfinite`; the last good checkpoint is intact.
      CheckpointError: a checkpoint cannot be read or written; earlier ones are intact.
      ValueError: bad mesh or data, before the first step.
    """
    mesh = sharding.make_mesh(run.mesh)
    optimizer, schedule = make_optimizer(run.optimizer, run.steps)
    key = jax.random.key(run.seed)
    with jax.set_mesh(mesh), contextlib.ExitStack() as resources:
        # Checks mesh and data, so it comes before the directory is made.
        batches = task.batches(mesh)
        resources.callback(getattr(batches, "close", lambda: None))
        checkpoints = Checkpoints(workdir, run.checkpoint)
        resources.callback(checkpoints.close)
        state = _start_state(task, run, optimizer, key, mesh, checkpoints, batches, start)
        step = make_train_step(
            task,
            optimizer,
            accumulation=run.accumulation,
            ema_decay=run.ema_decay,
            key=jax.random.fold_in(key, 1),
        )
        # The state stays laid out as it came, whatever the compiler would choose; metrics are
        # whole on every process, so that each can read them.
        layout = jax.tree.map(lambda x: x.sharding, state)
        step = jax.jit(step, donate_argnums=0, out_shardings=(layout, sharding.replicated(mesh)))
        writer = metrics_lib.MetricsWriter(workdir, run.log, run_config or {}, int(state.step))
        resources.callback(writer.close)
        loop = _Loop(task, run, mesh, schedule, checkpoints, writer, callbacks)
        return loop.run_steps(state, step, batches, on_begin)


def _start_state(task, run, optimizer, key, mesh, checkpoints, batches, start):
    ema = run.ema_decay > 0
    if checkpoints.latest_step() is not None:
        abstract = abstract_state(task, optimizer, key, mesh, ema)
        state, position = checkpoints.restore(abstract)
        batches.set_state(position)
        _say(f"resumed from step {int(state.step)}")
        return state
    state = init_state(task, optimizer, key, mesh, ema)
    if start is not None:
        state = _started(state, start, ema)
    count = sum(p.size for p in jax.tree.leaves(state.params))
    _say(f"{count:,} parameters on mesh {dict(mesh.shape)}")
    return state


def _started(state: TrainState, start: Start, ema: bool) -> TrainState:
    old = {"params": state.params, **state.model_state}
    new = start(old)
    check_same_tree(new, old, "start", types=False)
    new = jax.tree.map(lambda n, o: jax.device_put(n.astype(o.dtype), o.sharding), new, old)
    params = new.pop("params")
    averaged = average_start(params) if ema else None
    return state.replace(params=params, model_state=new, ema=averaged)


class _Loop:
    """The steps of one process run, with what they report to."""

    def __init__(self, task, run, mesh, schedule, checkpoints, writer, callbacks):
        self.task, self.run, self.schedule = task, run, schedule
        self.checkpoints, self.writer, self.callbacks = checkpoints, writer, callbacks
        self.batch_shardings = task.batch_shardings(mesh)
        self.accumulator = metrics_lib.Accumulator()
        # Of steps already dispatched, on the device: (step, metrics), until somebody looks.
        self.unchecked: tuple[int, dict] | None = None
        self.unlogged: tuple[int, dict] | None = None
        self.skipped = 0

    def run_steps(self, state, step_function, batches, on_begin) -> TrainState | None:
        start, total = int(state.step), self.run.steps
        self.progress = metrics_lib.Progress(start, total, self.task.tokens_per_batch())
        if start > 0:
            self._call_back(start, state, last=start >= total, resumed=True)
        if start >= total:
            _say(f"finished already: {start} of {total} steps are done")
            return state
        with Interruption() as interruption:
            for step in range(start + 1, total + 1):
                batch = self._put(next(batches))
                with jax.transfer_guard("disallow"):
                    state, metrics = step_function(state, batch)
                if step == start + 1:
                    on_begin()
                self._look_back()
                self._keep(step, metrics, log=step % self.run.log.every == 0 or step == start + 1)
                last = step == total
                stop = interruption.requested and not last
                if stop or last or step % self.run.checkpoint.every == 0:
                    self._save(step, state, batches, wait=stop or last)
                if stop:
                    _say(f"interrupted: saved step {step}; run the same command again to go on")
                    return None
                self._call_back(step, state, last)
        self._look_back()
        return state

    def _keep(self, step: int, metrics: dict, log: bool) -> None:
        """Leaves the numbers of a step on the device, to be looked at when the next one runs."""
        self.accumulator.add(metrics)
        self.unchecked = (step, metrics)
        if log or step == self.run.steps:
            self.unlogged = (step, self.accumulator.take())

    def _look_back(self) -> None:
        """Logs and checks the step before the one that runs now."""
        self._log()
        self._check()

    def _put(self, batch):
        """Host arrays of this process's rows -> global device arrays."""

        def put(target, arrays):
            return jax.tree.map(
                lambda x: jax.make_array_from_process_local_data(target, np.asarray(x)), arrays
            )

        return jax.tree.map(put, self.batch_shardings, batch)

    def _check(self) -> None:
        """Applies the policy for numbers that are not finite to the last unchecked step."""
        if self.unchecked is None:
            return
        (step, metrics), self.unchecked = self.unchecked, None
        if float(metrics["nonfinite"][0]) == 0.0:
            self.skipped = 0
            return
        self.skipped += 1
        if self.run.nonfinite == "halt" or self.skipped > self.run.max_skipped:
            self.checkpoints.wait()
            latest = self.checkpoints.latest_step()
            kept = "there is no checkpoint" if latest is None else f"step {latest} is saved"
            raise HaltedError(
                f"loss or gradient of step {step} is not finite (policy {self.run.nonfinite}, "
                f"{self.skipped} in a row); {kept}"
            )
        _say(f"step {step}: not finite, update skipped ({self.skipped} in a row)")

    def _log(self) -> None:
        if self.unlogged is None:
            return
        (step, sums), self.unlogged = self.unlogged, None
        values = metrics_lib.means(sums)
        rate, to_go = self.progress.rate(step)
        values["learning_rate"] = float(self.schedule(step - 1))
        values[f"{self.task.unit}_per_second"] = rate
        mfu = metrics_lib.mfu(rate * self.task.flops_per_unit())
        if mfu:
            values["mfu"] = mfu
        self.writer.write(step, values)
        shown = " ".join(
            f"{k.removeprefix('loss/')} {v:.4g}" for k, v in values.items() if k.startswith("loss")
        )
        _say(
            f"step {step}/{self.run.steps} {shown} | {rate:,.0f} {self.task.unit}/s | "
            f"{metrics_lib.duration(to_go)} to go"
        )

    def _save(self, step, state, batches, wait: bool) -> None:
        self._look_back()  # a step that halts the run must not become a checkpoint
        began = time.perf_counter()
        self.checkpoints.save(step, state, batches.get_state(), wait=wait)
        self.progress.pause(time.perf_counter() - began)

    def _call_back(self, step, state, last: bool, resumed: bool = False) -> None:
        """Calls what is due; after a resume only what was cut off."""
        began = time.perf_counter()
        for callback in self.callbacks:
            due = last or (callback.every and step % callback.every == 0)
            done = resumed and getattr(callback, "done", lambda step: True)(step)
            if due and not done:
                values = callback(step, state, self.writer)
                if values:
                    self.writer.write(step, values)
                    shown = " ".join(f"{k} {v:.4g}" for k, v in values.items())
                    _say(f"step {step} evaluation: {shown}")
        self.progress.pause(time.perf_counter() - began)


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)
