"""The training loop: losses fall, callbacks come when due, any mesh gives the same."""

import os
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from toy_task import At, Numbered, ToyTask, assert_same_trees, leaves, losses, run_config

from emu3_jax.sharding import MeshConfig
from emu3_jax.train import loop
from emu3_jax.train.loop import Callback, train
from emu3_jax.train.optimizer import OptimizerConfig
from emu3_jax.train.run import divergence
from emu3_jax.train.run import metrics as metrics_lib
from emu3_jax.train.run.checkpoint import CheckpointError
from emu3_jax.train.run.metrics import read_metrics


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A whole run: its directory and final state."""
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, train(ToyTask(noise=0.1), run_config(ema_decay=0.9), workdir)


def test_the_loss_falls(unbroken):
    found = losses(unbroken[0])
    assert sorted(found) == list(range(1, 21))
    assert found[20][0] < 0.5 * found[1][0]


def test_callbacks_come_at_their_interval_and_after_the_last_step(tmp_path):
    class Recorder(Callback):
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


def test_mfu_is_logged_where_the_peak_is_known_and_flops_are_not_counted_elsewhere(
    tmp_path, monkeypatch
):
    counts = []
    monkeypatch.setattr(ToyTask, "flops_per_unit", lambda self: counts.append(1) or 3e6)
    train(ToyTask(), run_config(steps=2), tmp_path / "unknown")
    assert not counts and all("mfu" not in row for row in read_metrics(tmp_path / "unknown"))
    monkeypatch.setitem(metrics_lib.PEAK_FLOPS, jax.devices()[0].device_kind, 2e9)
    train(ToyTask(), run_config(steps=2), tmp_path / "known")
    rows = [row for row in read_metrics(tmp_path / "known") if row.get("rows_per_second")]
    assert counts == [1] and rows
    for row in rows:
        share = row["rows_per_second"] * 3e6 / (2e9 * jax.device_count())
        assert row["mfu"] == pytest.approx(share)


def test_metrics_are_fetched_when_the_next_step_has_been_dispatched(tmp_path, monkeypatch):
    """The order of events, with a step that tells its number instead of computing."""
    events = []

    class Number:
        """A metric on the device: reading it is an event."""

        def __init__(self, step):
            self.step = step

        def is_ready(self):
            return True

    class Once:
        def add(self, metrics):
            self.step = metrics["nonfinite"][0].step

        def take(self):
            return self.step

    def fetch(metrics):
        events.append(f"check {metrics['nonfinite'][0].step}")
        return {name: (0.0, 1.0) for name in metrics}

    monkeypatch.setattr(metrics_lib, "Accumulator", Once)
    monkeypatch.setattr(
        metrics_lib, "means", lambda step: events.append(f"log {step}") or {"loss": 0.0}
    )
    monkeypatch.setattr(divergence.jax, "device_get", fetch)

    def fake_step(*args, **kwargs):
        def step(state, batch):
            number = int(state.step) + 1
            events.append(f"dispatch {number}")
            return state.replace(step=state.step + 1), dict.fromkeys(
                ("nonfinite", "empty"), (Number(number), 1.0)
            )

        return step

    monkeypatch.setattr(loop, "jitted_train_step", fake_step)
    monkeypatch.setattr(loop.jax, "transfer_guard", lambda level: pytest.MonkeyPatch.context())
    train(ToyTask(), run_config(steps=3, every=100), tmp_path)
    expected = ["dispatch 1"]
    for step in (2, 3):
        expected += [f"dispatch {step}", f"log {step - 1}", f"check {step - 1}"]
    assert events == [*expected, "log 3", "check 3"]


def test_the_step_runs_without_implicit_transfers(tmp_path, monkeypatch):
    """A host array that slips into the compiled step's arguments is an error."""
    levels = []
    real = jax.transfer_guard
    monkeypatch.setattr(
        loop.jax, "transfer_guard", lambda level: levels.append(level) or real(level)
    )
    monkeypatch.setattr(loop, "global_array", lambda array, sharding, share: array)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(ToyTask(), run_config(steps=2), tmp_path)
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

    class Layout(Callback):
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


def test_a_fresh_run_starts_from_its_initial_weights(tmp_path):
    first = train(ToyTask(), run_config(steps=3), tmp_path / "a")
    weights = jax.tree.map(lambda x: np.asarray(x, np.float16), first.params)

    def start(variables):
        return variables | {"params": weights}

    seen = []

    class First(Callback):
        every = 1

        def __call__(self, step, state, writer):
            seen.append(leaves(state.params))
            return {}

    run = run_config(steps=1, optimizer=OptimizerConfig(learning_rate=0.0))
    state = train(ToyTask(start=start), run, tmp_path / "b", callbacks=[First()])
    assert_same_trees(state.params, jax.tree.map(lambda x: np.asarray(x, np.float32), weights))
    with pytest.raises(CheckpointError, match="start does not fit.*dense/bias"):
        train(ToyTask(outputs=16, start=start), run, tmp_path / "c")


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(steps=0), "steps must be 1 or more"),
        (dict(accumulation=0), "accumulation must be"),
        (dict(accumulated_mean="rows"), "accumulated_mean must be tokens or micro_batches"),
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


class Late:
    """The part of a save that is written in the background; it fails after a while."""

    def result(self, timeout=None):
        time.sleep(0.2)
        raise OSError(28, "No space left on device")


def test_the_last_save_is_awaited_and_its_failure_is_that_of_the_run(tmp_path, monkeypatch):
    """After the last step nothing else would notice it."""

    async def late(self, directory, *args, **kwargs):
        return [Late()]

    def fill():
        monkeypatch.setattr(ocp.JsonCheckpointHandler, "async_save", late)

    with pytest.raises(CheckpointError, match="saving step 4 .*No space left.*step 2 is intact"):
        train(ToyTask(), run_config(steps=4, every=2), tmp_path, callbacks=[At(3, fill)])


def test_counts_of_the_data_are_logged(tmp_path, monkeypatch):
    monkeypatch.setattr(Numbered, "counts", lambda self: {"documents_cut": 10 * self.number})
    train(ToyTask(), run_config(steps=3), tmp_path)
    found = {row["step"]: row["data/documents_cut"] for row in read_metrics(tmp_path)}
    assert found == {1: 10, 2: 20, 3: 30}


def test_batches_see_the_weights_that_they_will_change(tmp_path, monkeypatch):
    """Before each batch: the state of as many updates as there were batches; it is not kept."""
    seen = []

    def observe(self, state):
        kernel = float(state.params["dense"]["kernel"].sum())
        seen.append((self.number, int(state.step), kernel))

    monkeypatch.setattr(Numbered, "observe", observe)
    final = train(ToyTask(), run_config(steps=3), tmp_path)
    assert [one[:2] for one in seen] == [(0, 0), (1, 1), (2, 2)]
    kernels = [one[2] for one in seen] + [float(final.params["dense"]["kernel"].sum())]
    assert len(set(kernels)) == 4
