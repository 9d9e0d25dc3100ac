"""Numbers that are not finite, and loss spikes: halt, skip, or go back, as the config says."""

import json
import os
import signal

import numpy as np
import pytest
from toy_task import (
    At,
    ToyTask,
    assert_same_trees,
    checkpoint_names,
    leaves,
    poison,
    run_config,
)

from emu3_jax.train.loop import train
from emu3_jax.train.run.checkpoint import has_checkpoints
from emu3_jax.train.run.divergence import DivergenceConfig, Guard, HaltedError
from emu3_jax.train.run.goodput import Ledger
from emu3_jax.train.run.metrics import read_metrics


def test_a_number_that_is_not_finite_halts_the_run(tmp_path):
    with pytest.raises(HaltedError, match="step 7 is not finite.*step 5 is saved"):
        train(ToyTask({7: poison}), run_config(), tmp_path)
    rows = read_metrics(tmp_path)
    assert rows[-1]["step"] == 7 and rows[-1]["nonfinite"] == 1.0 and "loss" not in rows[-1]
    assert checkpoint_names(tmp_path) == {"5"}


def test_a_step_that_halts_never_becomes_a_checkpoint(tmp_path):
    with pytest.raises(HaltedError, match="step 5 is not finite.*there is no checkpoint"):
        train(ToyTask({5: poison}), run_config(), tmp_path)
    assert not has_checkpoints(tmp_path)


def test_skipping_goes_on_and_counts_each_bad_step_once(tmp_path, capsys):
    # Step 5 is also saved, which looks at its numbers early.
    task = ToyTask({4: poison, 5: poison, 7: poison})
    state = train(task, run_config(steps=8, nonfinite="skip", max_skipped=2), tmp_path)
    assert int(state.step) == 8 and all(np.isfinite(x).all() for x in leaves(state).values())
    lines = [line for line in capsys.readouterr().out.splitlines() if "update skipped" in line]
    assert [line.split(":")[0] for line in lines] == ["step 4", "step 5", "step 7"]
    assert ["(2 in a row)" in line for line in lines] == [False, True, False]
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


GUARDED = dict(window=4, loss_factor=2.0, norm_factor=0.0)


def _spike(batch):
    """A batch that the model cannot fit at all: its loss is far above twice any other."""
    return batch | {"y": batch["y"] + 100.0}


def _guarded(policy, **changes):
    divergence = DivergenceConfig(policy=policy, **(GUARDED | changes))
    return run_config(steps=12, every=3, divergence=divergence)


def _rows(workdir):
    return {row["step"]: row for row in read_metrics(workdir)}


def test_the_limits_are_medians_of_the_steps_that_are_known_in_time():
    guard = Guard(DivergenceConfig("skip", window=3, norm_factor=10.0), "halt", 0, lambda: None)
    numbers = {1: 4.0, 2: 8.0, 3: 5.0, 4: 6.0, 5: 7.0}
    for step, loss in numbers.items():
        guard.keep(step, _metrics(loss, loss / 10, spike=step == 4))
        assert not guard.check()
    # Of step 6 those up to step 4 are known, of which the fourth was a spike.
    assert guard.limits(6).tolist() == [2 * 5.0, 5.0]
    assert guard.limits(7).tolist() == [2 * 7.0, 7.0]
    assert np.isinf(guard.limits(4)).all()  # two steps are too few
    again = Guard(DivergenceConfig("skip", window=3), "halt", 0, lambda: None)
    again.set_state(json.loads(json.dumps(guard.get_state())))
    assert again.limits(7).tolist() == guard.limits(7).tolist()


def _metrics(loss, norm, spike=False):
    return {
        "nonfinite": (0.0, 1.0), "empty": (0.0, 1.0), "spike": (float(spike), 1.0),
        "loss": (2 * loss, 2.0), "gradient_norm": (norm, 1.0),
    }  # fmt: skip


def test_the_update_of_a_spike_is_skipped(tmp_path, capsys):
    """The run goes on as if the step had not been, but for the number of its batch."""
    state = train(ToyTask({8: _spike}), _guarded("skip"), tmp_path / "skip")
    assert "step 8 is a spike" in capsys.readouterr().out
    rows = _rows(tmp_path / "skip")
    assert rows[8]["spike"] == 1.0 and rows[8]["loss"] > 100
    assert rows[9]["spike"] == 0.0 and rows[9]["loss"] < rows[1]["loss"]
    assert int(state.step) == 12
    quiet = train(ToyTask(), _guarded("skip"), tmp_path / "quiet")
    assert max(row["spike"] for row in _rows(tmp_path / "quiet").values()) == 0.0
    bare = train(ToyTask(), run_config(steps=12, every=3), tmp_path / "off")
    assert_same_trees(quiet.params, bare.params)  # a guard that finds nothing changes nothing


def test_a_run_that_is_resumed_judges_as_the_unbroken_one(tmp_path):
    """What a spike is measured by is in the checkpoint."""
    whole = train(ToyTask({8: _spike}), _guarded("skip"), tmp_path / "whole")
    stop = At(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(ToyTask(), _guarded("skip"), tmp_path / "parts", callbacks=[stop]) is None
    resumed = train(ToyTask({8: _spike}), _guarded("skip"), tmp_path / "parts")
    assert_same_trees(resumed, whole)


def test_a_spike_leads_back_to_the_checkpoint_and_its_data_is_left_out(tmp_path, capsys):
    ledger = Ledger()
    state = train(ToyTask({8: _spike}), _guarded("rollback"), tmp_path, ledger=ledger)
    printed = capsys.readouterr().out
    assert "back to step 6; the data of steps 7 to 9 is left out" in printed
    assert int(state.step) == 12 and ledger.seconds()["lost"] > 0
    assert max(row["loss"] for row in _rows(tmp_path).values()) < 10
    assert sorted(_rows(tmp_path)) == list(range(1, 13))
    # The same, by hand: six steps, then the data from batch 10 on.
    train(ToyTask(), run_config(steps=12, every=3), tmp_path / "hand", callbacks=[
        At(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    ])  # fmt: skip
    later = {n: lambda batch, n=n: ToyTask().batches(None).at(n + 3) for n in range(7, 13)}
    by_hand = train(ToyTask(later), run_config(steps=12, every=3), tmp_path / "hand")
    assert_same_trees(state.params, by_hand.params)


def test_going_back_has_a_limit(tmp_path):
    task = ToyTask({n: _spike for n in (8, 11)})
    with pytest.raises(HaltedError, match="led back to step 6 1 times.*step 6 is saved"):
        train(task, _guarded("rollback", limit=1), tmp_path / "back")
    # Nothing to go back to: skipped, as often as is allowed.
    run = run_config(
        steps=12, every=100, divergence=DivergenceConfig("rollback", limit=1, **GUARDED)
    )
    task = ToyTask({n: _spike for n in (8, 9)})
    with pytest.raises(HaltedError, match="step 9 is a spike.*2 in a row; there is no checkpoint"):
        train(task, run, tmp_path / "skip")


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(policy="stop"), "divergence.policy must be one of off, skip, rollback"),
        (dict(loss_factor=1.0), "divergence.loss_factor must be above 1, or 0"),
        (dict(window=0), "divergence.window must be 1 or more"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        DivergenceConfig(**changes)
