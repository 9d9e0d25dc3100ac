"""The training loop: resuming is exact, interruptions save, bad numbers follow the policy."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from toy_task import Numbered, ToyTask, assert_same_trees, leaves, poison, run_config

from emu3_jax.sharding import MeshConfig
from emu3_jax.train import loop
from emu3_jax.train.checkpoint import CheckpointError, has_checkpoints
from emu3_jax.train.loop import HaltedError, train
from emu3_jax.train.metrics import read_metrics


class At:
    """A callback that does something after one step."""

    every = 1

    def __init__(self, step, action):
        self.step, self.action = step, action

    def __call__(self, step, state, writer):
        if step == self.step:
            self.action()
        return {}


def _losses(workdir):
    return {row["step"]: (row["loss"], row["loss/plain"]) for row in read_metrics(workdir)}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A whole run: its directory and final state."""
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, train(ToyTask(noise=0.1), run_config(ema_decay=0.9), workdir)


def test_the_loss_falls(unbroken):
    losses = _losses(unbroken[0])
    assert sorted(losses) == list(range(1, 21))
    assert losses[20][0] < 0.5 * losses[1][0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_stopped_and_resumed_is_the_unbroken_run_bit_for_bit(unbroken, tmp_path, number):
    before = signal.getsignal(number)
    # Sent after step 6, so that the loop sees it when step 7 is done.
    stop = At(6, lambda: os.kill(os.getpid(), number))
    run = run_config(ema_decay=0.9)
    assert train(ToyTask(noise=0.1), run, tmp_path, callbacks=[stop]) is None
    assert signal.getsignal(number) == before
    assert {c.name for c in (tmp_path / "checkpoints").iterdir()} == {"5", "7"}
    state = train(ToyTask(noise=0.1), run, tmp_path)
    assert_same_trees(state, unbroken[1])
    assert _losses(tmp_path) == _losses(unbroken[0])


def test_interrupted_in_the_very_first_step(unbroken, tmp_path):
    class Task(ToyTask):
        def batches(self, mesh):
            class FirstInterrupts(Numbered):
                def __next__(self):
                    if self.number == 0:
                        os.kill(os.getpid(), signal.SIGTERM)
                    return super().__next__()

            return FirstInterrupts()

    run = run_config(ema_decay=0.9)
    assert train(Task(noise=0.1), run, tmp_path) is None
    assert [c.name for c in (tmp_path / "checkpoints").iterdir()] == ["1"]
    assert_same_trees(train(Task(noise=0.1), run, tmp_path), unbroken[1])


def test_interrupted_in_the_last_step_has_finished(tmp_path):
    stop = At(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    state = train(ToyTask(), run_config(steps=4), tmp_path, callbacks=[stop])
    assert int(state.step) == 4


def test_a_second_ctrl_c_stops_at_once(tmp_path, capfd):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(ToyTask(), run_config(), tmp_path, callbacks=[At(7, twice)])
    assert "Ctrl-C once more stops without saving" in capfd.readouterr().err
    assert {c.name for c in (tmp_path / "checkpoints").iterdir()} == {"5"}


def test_a_finished_run_is_left_alone(unbroken, tmp_path, capsys):
    calls = []
    train(ToyTask(), run_config(steps=3), tmp_path)
    log = (tmp_path / "metrics.jsonl").read_bytes()
    state = train(
        ToyTask(), run_config(steps=3), tmp_path, callbacks=[At(3, lambda: calls.append(1))]
    )
    assert "finished already: 3 of 3 steps are done" in capsys.readouterr().out
    assert int(state.step) == 3 and not calls
    assert (tmp_path / "metrics.jsonl").read_bytes() == log


def test_training_works_outside_the_main_thread(tmp_path):
    found = []
    thread = threading.Thread(
        target=lambda: found.append(train(ToyTask(), run_config(steps=2), tmp_path))
    )
    thread.start()
    thread.join()
    assert int(found[0].step) == 2


KILLED = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", sys.argv[3])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
sys.path.insert(0, sys.argv[2])
import time
from toy_task import ToyTask, run_config
from emu3_jax.train.loop import train
class Slow:
    every = 1
    def __call__(self, step, state, writer):
        time.sleep(0.02)
        return {}
train(ToyTask(noise=0.1), run_config(every=2, ema_decay=0.9), sys.argv[1], callbacks=[Slow()])
print("whole", flush=True)
"""


def _kill_and_resume(workdir, seed, cache, expected):
    """Kills the run again and again, at moments drawn from `seed`, until it comes through."""
    rng = random.Random(seed)
    here = pathlib.Path(__file__).parent
    command = [sys.executable, "-c", KILLED, str(workdir), str(here), str(cache)]
    for attempt in range(3):
        process = subprocess.Popen(
            command,
            cwd=here.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(here.parent)},
        )
        if attempt < 2:
            for line in process.stdout:
                if line.startswith("step "):  # it is stepping and saving now
                    break
            time.sleep(rng.uniform(0.0, 0.6))
            process.kill()
        output = process.communicate()[0]
        if attempt == 2:
            assert process.returncode == 0, output
    state = train(ToyTask(noise=0.1), run_config(every=2, ema_decay=0.9), workdir)
    assert_same_trees(state, expected[1])
    assert _losses(workdir) == _losses(expected[0])


def test_killed_at_random_moments_and_resumed(unbroken, tmp_path):
    _kill_and_resume(tmp_path / "run", 0, tmp_path / "cache", unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_killed_at_twenty_moments_and_resumed(unbroken, tmp_path, seed):
    _kill_and_resume(tmp_path / "run", seed, tmp_path / "cache", unbroken)


def test_a_number_that_is_not_finite_halts_the_run(tmp_path):
    with pytest.raises(HaltedError, match="step 7 is not finite.*step 5 is saved"):
        train(ToyTask({7: poison}), run_config(), tmp_path)
    rows = read_metrics(tmp_path)
    assert rows[-1]["step"] == 7 and rows[-1]["nonfinite"] == 1.0 and "loss" not in rows[-1]
    assert {c.name for c in (tmp_path / "checkpoints").iterdir()} == {"5"}


def test_a_step_that_halts_never_becomes_a_checkpoint(tmp_path):
    with pytest.raises(HaltedError, match="step 5 is not finite.*there is no checkpoint"):
        train(ToyTask({5: poison}), run_config(), tmp_path)
    assert not has_checkpoints(tmp_path)


def test_skipping_goes_on_and_counts_each_bad_step_once(tmp_path, capsys):
    # Step 5 is also saved, which looks at its numbers early.
    task = ToyTask({4: poison, 5: poison, 7: poison})
    state = train(task, run_config(steps=8, nonfinite="skip", max_skipped=2), tmp_path)
    assert int(state.step) == 8 and all(np.isfinite(x).all() for x in leaves(state).values())
    told = [line for line in capsys.readouterr().out.splitlines() if "update skipped" in line]
    assert [line.split(":")[0] for line in told] == ["step 4", "step 5", "step 7"]
    assert ["(2 in a row)" in line for line in told] == [False, True, False]
    rows = {row["step"]: row for row in read_metrics(tmp_path)}
    assert rows[5]["nonfinite"] == 1.0 and rows[6]["nonfinite"] == 0.0


def test_skipping_has_a_limit(tmp_path):
    task = ToyTask({n: poison for n in (3, 4, 5)})
    with pytest.raises(HaltedError, match="step 5 .*3 in a row"):
        train(task, run_config(nonfinite="skip", max_skipped=2, every=100), tmp_path)


def test_skipped_steps_do_not_spoil_the_means(tmp_path):
    train(ToyTask({2: poison}), run_config(steps=4, log_every=4, nonfinite="skip"), tmp_path)
    row = read_metrics(tmp_path)[-1]
    assert np.isfinite(row["loss"]) and row["nonfinite"] == pytest.approx(1 / 3)


def test_callbacks_come_at_their_interval_and_after_the_last_step(tmp_path):
    class Recorder:
        def __init__(self, every):
            self.every, self.steps = every, []

        def __call__(self, step, state, writer):
            assert int(state.step) == step
            self.steps.append(step)
            return {"seen": float(step)}

    callbacks = [Recorder(3), Recorder(4), Recorder(0)]
    train(ToyTask(), run_config(steps=7, log_every=100), tmp_path, callbacks=callbacks)
    assert [c.steps for c in callbacks] == [[3, 6, 7], [4, 7], [7]]
    rows = {row["step"]: row for row in read_metrics(tmp_path)}
    assert sorted(rows) == [1, 3, 4, 6, 7]
    assert rows[6] == {"step": 6, "seen": 6.0}
    assert {"seen", "loss"} <= rows[7].keys()


def test_metrics_are_fetched_when_the_next_step_has_been_dispatched(tmp_path, monkeypatch):
    """The order of events, with a step that tells its number instead of computing."""
    events = []

    class Number:
        """A metric on the device: reading it is an event."""

        def __init__(self, step):
            self.step = step

        def __getitem__(self, index):
            return self

        def __float__(self):
            events.append(f"read {self.step}")
            return 0.0

    class Once:
        def add(self, metrics):
            self.step = metrics["nonfinite"].step

        def take(self):
            return self.step

    monkeypatch.setattr(loop.metrics_lib, "Accumulator", Once)
    monkeypatch.setattr(
        loop.metrics_lib, "means", lambda step: events.append(f"log {step}") or {"loss": 0.0}
    )
    real_jit = jax.jit

    def fake_jit(function, **options):
        if "donate_argnums" not in options:
            return real_jit(function, **options)

        def step(state, batch):
            number = int(state.step) + 1
            events.append(f"dispatch {number}")
            return state.replace(step=state.step + 1), {"nonfinite": Number(number)}

        return step

    monkeypatch.setattr(loop.jax, "jit", fake_jit)
    monkeypatch.setattr(loop.jax, "transfer_guard", lambda level: pytest.MonkeyPatch.context())
    train(ToyTask(), run_config(steps=3, every=100), tmp_path)
    expected = ["dispatch 1"]
    for step in (2, 3):
        expected += [f"dispatch {step}", f"log {step - 1}", f"read {step - 1}"]
    assert events == [*expected, "log 3", "read 3"]


def test_the_step_runs_without_implicit_transfers(tmp_path):
    """A host array that slips into the compiled step's arguments is an error."""

    class Task(ToyTask):
        def batch_shardings(self, mesh):
            return super().batch_shardings(mesh)

    levels = []
    real = jax.transfer_guard

    def recorded(level):
        levels.append(level)
        return real(level)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.jax, "transfer_guard", recorded)
        patch.setattr(loop._Loop, "_put", lambda self, batch: batch)
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            train(Task(), run_config(steps=2), tmp_path)
    assert levels == ["disallow"]


@pytest.mark.parametrize(
    "mesh",
    [MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(fsdp=1, data=8), MeshConfig(fsdp=8)],
    ids=["2x2x2", "data", "fsdp"],
)
def test_any_mesh_gives_the_same_parameters(unbroken, tmp_path, mesh):
    state = train(ToyTask(noise=0.1), run_config(ema_decay=0.9, mesh=mesh), tmp_path)
    found, expected = leaves(state.params), leaves(unbroken[1].params)
    for name in expected:
        # 20 AdamW steps of 0.05 on sums of 16 rows in another order.
        np.testing.assert_allclose(found[name], expected[name], atol=2e-5, err_msg=name)


def test_the_state_keeps_its_layout_over_steps_and_checkpoints(tmp_path):
    mesh = MeshConfig(fsdp=4, tensor=2)
    seen = []

    class Layout:
        every = 1

        def __call__(self, step, state, writer):
            kernel = state.params["dense"]["kernel"]
            adam = next(
                s
                for s in jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu"))
                if hasattr(s, "mu")
            )
            seen.append(
                (
                    kernel.sharding.shard_shape(kernel.shape),
                    adam.mu["dense"]["kernel"].addressable_shards[0].data.shape,
                )
            )
            return {}

    for steps in (2, 4):
        train(ToyTask(), run_config(steps=steps, mesh=mesh), tmp_path, callbacks=[Layout()])
    assert seen == [((2, 4), (2, 4))] * 4


def test_resuming_on_another_mesh(unbroken, tmp_path):
    run = run_config(ema_decay=0.9, steps=20)
    stop = At(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    train(ToyTask(noise=0.1), run, tmp_path, callbacks=[stop])
    other = run_config(ema_decay=0.9, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    state = train(ToyTask(noise=0.1), other, tmp_path)
    for name, value in leaves(unbroken[1].params).items():
        np.testing.assert_allclose(leaves(state.params)[name], value, atol=2e-5)


def test_a_fresh_run_begins_where_it_is_told(tmp_path):
    first = train(ToyTask(), run_config(steps=3), tmp_path / "a")
    weights = jax.tree.map(lambda x: np.asarray(x, np.float16), first.params)

    def start(variables):
        return variables | {"params": weights}

    seen = []

    class First:
        every = 1

        def __call__(self, step, state, writer):
            seen.append(leaves(state.params))
            return {}

    run = run_config(steps=1, optimizer=loop.OptimizerConfig(learning_rate=0.0))
    state = train(ToyTask(), run, tmp_path / "b", start=start, callbacks=[First()])
    assert_same_trees(state.params, jax.tree.map(lambda x: np.asarray(x, np.float32), weights))
    with pytest.raises(CheckpointError, match="start does not fit.*dense/bias"):
        train(ToyTask(outputs=16), run, tmp_path / "c", start=start)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(steps=0), "steps must be 1 or more"),
        (dict(accumulation=0), "accumulation must be"),
        (dict(nonfinite="stop"), "nonfinite must be halt or skip"),
        (dict(ema_decay=1.0), "ema_decay must be"),
        (dict(max_skipped=-1), "max_skipped must be"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        run_config(**changes)


def test_a_batch_that_cannot_be_split_into_micro_batches(tmp_path):
    with pytest.raises(ValueError, match="run.accumulation=3 .* 16 rows"):
        train(ToyTask(), run_config(accumulation=3), tmp_path)
