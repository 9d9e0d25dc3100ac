"""Signs of life, stacks when there are none, and the profiler's window."""

import json
import subprocess
import sys
import time

import pytest
from toy_task import ToyTask, run_config

from emu3_jax.train.loop import train
from emu3_jax.train.run.watch import Watch, WatchConfig


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


# Ends half a second after the words are in the file; who waits for it runs no Python meanwhile.
# Stacks are read without a lock: those of a thread that runs may take the process along.
UNTIL_TOLD = 'until grep -q "$1" "$2"; do sleep 0.1; done; sleep 0.5'


def test_a_hang_shows_the_stacks_of_all_threads(tmp_path, monkeypatch):
    def where_it_hangs():
        subprocess.run(["sh", "-c", UNTIL_TOLD, "sh", "where_it_hangs", path], timeout=1800)

    path = tmp_path / "stderr"
    with open(path, "w") as file:
        monkeypatch.setattr("sys.__stderr__", file)
        with Watch(tmp_path, WatchConfig(hang_seconds=1.5)):
            where_it_hangs()
        dumped = path.read_text()
        assert "Timeout (0:00:01.5" in dumped and "where_it_hangs" in dumped


@pytest.fixture
def alarm(monkeypatch):
    """What is asked of faulthandler: the seconds of each alarm, and "off"."""
    calls = []

    def arm(seconds, *, repeat, file, exit):
        assert repeat and file is sys.__stderr__ and not exit
        calls.append(seconds)

    monkeypatch.setattr("faulthandler.dump_traceback_later", arm)
    monkeypatch.setattr("faulthandler.cancel_dump_traceback_later", lambda: calls.append("off"))
    return calls


def test_every_sign_of_life_puts_the_alarm_off_and_the_end_takes_it_away(tmp_path, alarm):
    with Watch(tmp_path, WatchConfig(hang_seconds=7.0)) as watch:
        for step in range(3):
            watch.alive(step)
    assert alarm == [7.0, 7.0, 7.0, 7.0, "off"]


def test_a_run_gives_a_sign_of_life_after_each_step(tmp_path, alarm):
    watch = WatchConfig(hang_seconds=7.0, heartbeat_seconds=0.0)
    train(ToyTask(), run_config(steps=5, watch=watch), tmp_path)
    assert json.loads((tmp_path / "heartbeat.json").read_text())["step"] == 5
    assert set(alarm[:-1]) == {7.0} and len(alarm[:-1]) > 5 and alarm[-1] == "off"


def test_the_profiler_records_its_window(tmp_path, capsys):
    run = run_config(steps=6, watch=WatchConfig(profile_step=2, profile_steps=2))
    train(ToyTask(), run, tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert "profile of steps 2 to 3" in capsys.readouterr().out


@pytest.mark.parametrize("changes", [dict(hang_seconds=-1.0), dict(profile_steps=0)])
def test_bad_settings(changes):
    with pytest.raises(ValueError, match=f"watch.{next(iter(changes))} must be"):
        WatchConfig(**changes)
