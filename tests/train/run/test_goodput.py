"""Every second of a run is booked once, also over kills and resumes."""

import json
import os
import signal
import time

import pytest
from toy_task import At, ToyTask, run_config

from emu3_jax.train.loop import train
from emu3_jax.train.run import goodput
from emu3_jax.train.run.goodput import GoodputLog, Ledger, shares, summary


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(goodput.time, "time", clock)
    return clock


def test_blocks_are_booked_once_and_sum_to_the_wall_time(clock):
    ledger = Ledger(clock)
    clock.now += 5  # initialise
    ledger.turn_to("step")
    for _ in range(3):
        with ledger.during("data"):
            clock.now += 1
        clock.now += 10
    with ledger.during("save"):
        clock.now += 2
        with ledger.during("evaluate"):  # the inner one counts
            clock.now += 4
    seconds = ledger.seconds()
    assert seconds == {
        "initialise": 5, "compile": 0, "data": 3, "step": 30, "save": 2, "evaluate": 4, "lost": 0,
    }  # fmt: skip
    assert sum(seconds.values()) == clock.now - 1000
    ledger.move("data", "step", 3)
    assert ledger.seconds()["step"] == 33 and sum(ledger.seconds().values()) == 44
    assert shares(ledger.seconds()).startswith("step 75.0 %, initialise 11.4 %")


def test_going_back_books_the_steps_since_as_lost(clock):
    ledger = Ledger(clock)
    ledger.turn_to("step")
    clock.now += 10
    ledger.mark(5)
    clock.now += 7
    with ledger.during("data"):
        clock.now += 1
    ledger.lose_since(5)
    seconds = ledger.seconds()
    assert (seconds["step"], seconds["data"], seconds["lost"]) == (10, 0, 8)


def _start(clock, workdir, begin, steps, every):
    """One start of a run: 3 s to begin, 2 s a step, a line at every multiple of `every`."""
    ledger = Ledger(clock)
    log = GoodputLog(workdir, ledger, begin)
    clock.now += 3
    log.write(begin)
    ledger.turn_to("step")
    for step in range(begin + 1, begin + steps + 1):
        clock.now += 2
        if step % every == 0:
            log.write(step)
    log.close()


def test_steps_that_a_kill_threw_away_are_lost(clock, tmp_path):
    """Killed in step 8, of which the line of step 7 knows; the checkpoint was that of step 4."""
    _start(clock, tmp_path, 0, 7, 1)
    clock.now += 100  # a step that nobody knows of, and the time until somebody starts it again
    _start(clock, tmp_path, 4, 6, 2)
    found = summary(tmp_path)
    assert found == {
        "initialise": 6, "compile": 0, "data": 0, "save": 0, "evaluate": 0,
        "step": 4 * 2 + 6 * 2, "lost": 3 * 2, "down": 100,
    }  # fmt: skip
    assert sum(found.values()) == clock.now - 1000


def test_a_real_run_adds_up(tmp_path):
    began = time.time()
    stop = At(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    run = run_config(steps=12, every=4, log_every=2)
    for callbacks in ([stop], []):
        ledger = Ledger()
        train(ToyTask(), run, tmp_path, callbacks=callbacks, ledger=ledger)
    ended = time.time()
    found = summary(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "goodput.jsonl").read_text().splitlines()]
    assert {line["from"] for line in lines} == {0, 7}
    assert all(found[name] > 0 for name in ("initialise", "compile", "step", "save", "down"))
    # The last line is written before the logs are closed.
    last = lines[-1]["began"] + sum(lines[-1]["seconds"].values())
    assert sum(found.values()) == pytest.approx(last - lines[0]["began"], abs=0.1)
    assert began - 0.1 <= lines[0]["began"] and last <= ended + 0.1


def test_a_directory_without_a_ledger(tmp_path):
    with pytest.raises(ValueError, match="goodput.jsonl does not exist"):
        summary(tmp_path)
