"""The one training loop, for every task.

One step draws batch n, dispatches update n, and then reads the metrics of update n - 1, so the
device does not wait for the host. A run starts from the first of these that exists:
  1. the newest complete checkpoint in its own directory (state and data position),
  2. a fresh initialisation from the seed, with the task's `initial_weights` if it has any.
Nothing else decides where a run starts. With several processes, each runs this loop on its own rows
of the batch; the first process prints and writes for all.
"""

import abc
import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, contextmanager

import jax

from emu3_jax import sharding
from emu3_jax.data.batches import Batches
from emu3_jax.train.initial_state import InitialState
from emu3_jax.train.run import readable
from emu3_jax.train.run.checkpoint import Checkpoints
from emu3_jax.train.run.distributed import gather, global_array, say
from emu3_jax.train.run.divergence import Guard
from emu3_jax.train.run.goodput import Ledger
from emu3_jax.train.run.interruption import Interruption
from emu3_jax.train.run.metrics import MetricsWriter
from emu3_jax.train.run.run_log import Report
from emu3_jax.train.run.watch import Watch
from emu3_jax.train.run_config import RunConfig
from emu3_jax.train.step import jitted_train_step
from emu3_jax.train.task import Task, TrainState


class Callback(abc.ABC):
    """A function that the loop calls at an interval, such as an evaluation.

    Attributes:
      every: steps between calls; 0 calls it after the last step only. It is always called after
        the last step.
    """

    every: int

    @abc.abstractmethod
    def __call__(self, step: int, state: TrainState, writer: MetricsWriter) -> dict[str, float]:
        """Returns metrics to log. Every process calls it; the first one logs.

        Args:
          step: number of updates done.
          state: the state after these updates. The next update donates its arrays: keep none.
          writer: takes images.
        """

    def in_words(self, values: dict[str, float]) -> str:
        """Returns the metrics of a call as one line to print."""
        return f"evaluation: {readable.line(values)}"

    def done(self, step: int) -> bool:
        """Returns whether the results of the call after `step` are stored already.

        When a run resumes at a step where a call is due, the loop makes the call unless this
        returns True.
        """
        del step
        return True


def train(
    task: Task,
    run: RunConfig,
    workdir: str | os.PathLike,
    *,
    callbacks: Sequence[Callback] = (),
    run_config: dict | None = None,
    on_begin: Callable[[], None] = lambda: None,
    ledger: Ledger | None = None,
    interruption: Interruption | None = None,
    before_save: Callable[[], None] = lambda: None,
    allow_changes: bool = False,
) -> TrainState | None:
    """Trains until `run.steps` or until a signal asks to stop; returns the final state.

    Args:
      task: what to train.
      run: how to train it.
      workdir: run directory; holds checkpoints/, metrics.jsonl, goodput.jsonl, tensorboard/.
      callbacks: called at their interval and after the last step.
      run_config: the resolved config, for Weights & Biases.
      on_begin: called once the first update is dispatched: after all checks of the input.
      ledger: counts the time since the command began; None counts from this call.
      interruption: handles signals; holds the signal's number after an interrupted run.
      before_save: called before each checkpoint; an error that it raises ends the run.
      allow_changes: also resume if the data (mixture, row length, …) differ from those so far.

    Returns:
      The state after the last step; None if a signal stopped the run, which then can be resumed.

    Raises:
      HaltedError: `run.nonfinite` or `run.divergence` ended the run; checkpoints are intact.
      CheckpointError: a checkpoint cannot be read or written; earlier ones are intact.
      ValueError: mesh, data or initial weights do not fit; raised before the first step.
    """
    mesh = sharding.make_mesh(run.mesh)
    with jax.set_mesh(mesh), ExitStack() as resources:
        # These check mesh, data and initial weights, so they come before the directory is made.
        batches = resources.enter_context(closing(task.batches(mesh)))
        optimizer, schedule = task.optimizer(run.optimizer, run.steps)
        key = jax.random.key(run.seed)
        initial = InitialState(task, optimizer, key, mesh, run.ema_decay > 0)
        initial.check(workdir)
        checkpoints = resources.enter_context(Checkpoints(workdir, run.checkpoint))
        state, saved = initial.first(checkpoints)
        guard = Guard(run.divergence, run.nonfinite, run.max_skipped, checkpoints.latest_when_idle)
        _go_on(saved, batches, guard, allow_changes)
        report = resources.enter_context(closing(Report(
            workdir, task, run, schedule, int(state.step),
            ledger=ledger or Ledger(), note=checkpoints.note, run_config=run_config or {},
        )))  # fmt: skip
        watch = resources.enter_context(Watch(workdir, run.watch))
        parts = (batches, checkpoints, initial, guard, report, watch, callbacks, before_save)
        step_function = jitted_train_step(
            task, optimizer, initial.abstract, mesh, accumulation=run.accumulation,
            accumulated_mean=run.accumulated_mean, ema_decay=run.ema_decay,
            key=jax.random.fold_in(key, 1),
        )  # fmt: skip
        run_steps = _Loop(task, run, *parts).run_steps
        return run_steps(state, step_function, on_begin, interruption or Interruption())


def _go_on(saved: dict | None, batches: Batches, guard: Guard, allow_changes: bool) -> None:
    """Restores data and guard from what a checkpoint saved; nothing to do if `saved` is None."""
    if saved is not None:
        position = saved["position"]
        batches.set_state(batches.adapt_state(position) if allow_changes else position)
        guard.set_state(saved.get("guard", []))


@dataclasses.dataclass
class _Loop:
    """The steps of one run in one process."""

    task: Task
    run: RunConfig
    batches: Batches
    checkpoints: Checkpoints
    initial: InitialState
    guard: Guard
    report: Report
    watch: Watch
    callbacks: Sequence[Callback]
    before_save: Callable[[], None]
    running: jax.Array | None = None  # a scalar that the last dispatched step returns

    def __post_init__(self):
        self.ledger = self.report.ledger
        mesh = self.initial.mesh
        self.layout = self.task.batch_shardings(mesh)
        self.replicated = sharding.replicated(mesh)

    def run_steps(self, state, step_function, on_begin, interruption) -> TrainState | None:
        step, total, begun = int(state.step), self.run.steps, False
        self.ledger.mark(step)
        if step > 0:
            self._call_back(step, state, resumed=True)
        if step >= total:
            say(f"finished already: {step} of {total} steps are done")
            return state
        if self.task.note:
            say(self.task.note)
        self.ledger.turn_to("step")
        with interruption:
            while step < total:
                step += 1
                self.watch.before(step)
                arguments = self._arguments(step, state)
                with (
                    self.ledger.during("step" if begun else "compile"),
                    jax.transfer_guard("disallow"),
                ):
                    state, metrics = step_function(state, *arguments)
                self.running = metrics["nonfinite"][0]
                if not begun:
                    on_begin()
                    begun = True
                stop = interruption.requested(step) and step < total
                if not self._settle(step, state, metrics, stop):
                    state, step = self._go_back(step, state)
                    continue
                if stop:
                    say(f"interrupted: saved step {step}; run the same command again to go on")
                    return None
                self._call_back(step, state)
                self.watch.alive(step)
        self.report.finish(step)
        return state

    def _arguments(self, step: int, state: TrainState) -> tuple:
        """Returns (batch[, limits]) of a step; batch arrays are global, on the devices."""
        before = self.ledger.seconds()["data"]
        with self.ledger.during("data"):
            self.batches.observe(state)
            host = next(self.batches)
        if self.running is not None and not self.running.is_ready():
            # The device is still busy with the previous step: it did not wait for this batch.
            self.ledger.move("data", "step", self.ledger.seconds()["data"] - before)
        batch = {
            name: global_array(rows, self.layout[name], self.batches.share.get(name))
            for name, rows in host.items()
        }
        if not self.guard.active:
            return (batch,)
        limits = global_array(self.guard.limits(step), self.replicated, None)
        return batch, limits

    def _settle(self, step: int, state, metrics: dict, stop: bool) -> bool:
        """Checks the previous step and saves if due; returns False if the run must roll back."""
        if not self._look_back():
            return False
        self.guard.keep(step, metrics)
        self.report.keep(step, metrics, self.batches.counts())
        at_end = stop or step == self.run.steps
        if at_end or step % self.run.checkpoint.every == 0:
            return self._save(step, state, wait=at_end)
        return True

    def _look_back(self) -> bool:
        """Logs and checks the last step kept; returns False if the run must roll back."""
        self.report.log()
        return not self.guard.check()

    def _save(self, step: int, state, wait: bool) -> bool:
        if not self._look_back():  # a bad step must not become a checkpoint
            return False
        self.before_save()
        with self._meanwhile("save"):
            states = gather(self.batches.get_state())
            position = states[0] if len(states) == 1 else self.batches.merge_states(states)
            beside = {"position": position, "guard": self.guard.get_state()}
            self.checkpoints.save(step, self.initial.saved_part(state), beside, wait=wait)
        self.ledger.mark(step)
        self.report.book(step)
        return True

    def _go_back(self, step: int, state: TrainState) -> tuple[TrainState, int]:
        """Restores the last checkpoint after a spike; the data position is not moved back."""
        with self._meanwhile("lost"):
            state, beside = self.initial.restored(self.checkpoints, state.model_state)
        saved = int(state.step)
        self.guard.went_back(saved, beside.get("guard", []))
        self.ledger.lose_since(saved)
        self.report.rewind(saved)
        self.running = None
        say(f"back to step {saved}; the data of steps {saved + 1} to {step} is left out")
        return state, saved

    def _call_back(self, step: int, state, resumed: bool = False) -> None:
        """Calls the callbacks that are due; on resume, only those whose results are missing."""
        last = step >= self.run.steps
        for callback in self.callbacks:
            due = last or (callback.every and step % callback.every == 0)
            if due and not (resumed and callback.done(step)):
                with self._meanwhile("evaluate"):
                    values = callback(step, state, self.report.writer)
                if values:
                    self.report.write(step, values)
                    say(f"step {step} {callback.in_words(values)}")

    @contextmanager
    def _meanwhile(self, what: str):
        """Books the time of the block as `what` and leaves it out of the throughput."""
        began = time.perf_counter()
        with self.ledger.during(what):
            yield
        self.report.pause(time.perf_counter() - began)
        self.watch.rearm()
