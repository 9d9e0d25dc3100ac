"""Signs of life, stacks when there are none, and the profiler's window."""

import json
import time

import pytest
from toy_task import At, ToyTask, run_config

from emu3_jax.train.loop import train
from emu3_jax.train.watch import Watch, WatchConfig


def test_the_heartbeat_tells_the_last_step_and_is_not_written_too_often(tmp_path):
    with Watch(tmp_path, WatchConfig(heartbeat_seconds=60.0)) as watch:
        watch.alive(3)
        watch.alive(4)
    beat = json.loads((tmp_path / "heartbeat.json").read_text())
    assert beat["step"] == 3 and abs(beat["time"] - time.time()) < 60
    with Watch(tmp_path, WatchConfig(heartbeat_seconds=0.0)) as watch:
        watch.alive(4)
        watch.alive(5)
    assert json.loads((tmp_path / "heartbeat.json").read_text())["step"] == 5


def test_a_hang_shows_the_stacks_of_all_threads(tmp_path, capfd):
    def where_it_hangs():
        time.sleep(2.5)

    # Long enough not to fall into compiling: stacks are read without a lock, and those of a thread
    # that runs meanwhile, not hangs, may take the process along.
    run = run_config(steps=2, watch=WatchConfig(hang_seconds=2.0, heartbeat_seconds=0.0))
    train(ToyTask(), run, tmp_path, callbacks=[At(1, where_it_hangs)])
    told = capfd.readouterr().err
    assert "Timeout (0:00:02" in told and "where_it_hangs" in told
    assert json.loads((tmp_path / "heartbeat.json").read_text())["step"] == 2
    time.sleep(2.1)
    assert "Timeout" not in capfd.readouterr().err  # nobody watches a run that is over


def test_signs_of_life_keep_it_quiet(tmp_path, capfd):
    with Watch(tmp_path, WatchConfig(hang_seconds=2.0)) as watch:
        for step in range(6):
            time.sleep(0.4)
            watch.alive(step)
    assert "Timeout" not in capfd.readouterr().err


def test_the_profiler_records_its_window(tmp_path, capsys):
    run = run_config(steps=6, watch=WatchConfig(profile_step=2, profile_steps=2))
    train(ToyTask(), run, tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert "profile of steps 2 to 3" in capsys.readouterr().out


@pytest.mark.parametrize("changes", [dict(hang_seconds=-1.0), dict(profile_steps=0)])
def test_bad_settings(changes):
    with pytest.raises(ValueError, match=f"watch.{next(iter(changes))} must be"):
        WatchConfig(**changes)
