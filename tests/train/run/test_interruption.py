"""A run that is asked to stop saves first, and resuming it is the unbroken run bit for bit."""

import os
import signal
import threading

import pytest
from toy_task import (
    At,
    Numbered,
    ToyTask,
    assert_same_trees,
    checkpoint_names,
    losses,
    run_config,
)

from emu3_jax.train.loop import train


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A whole run: its directory and final state."""
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, train(ToyTask(noise=0.1), run_config(ema_decay=0.9), workdir)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_stopped_and_resumed_is_the_unbroken_run_bit_for_bit(unbroken, tmp_path, number):
    before = signal.getsignal(number)
    # Sent after step 6, so that the loop sees it when step 7 is done.
    stop = At(6, lambda: os.kill(os.getpid(), number))
    run = run_config(ema_decay=0.9)
    assert train(ToyTask(noise=0.1), run, tmp_path, callbacks=[stop]) is None
    assert signal.getsignal(number) == before
    assert checkpoint_names(tmp_path) == {"5", "7"}
    state = train(ToyTask(noise=0.1), run, tmp_path)
    assert_same_trees(state, unbroken[1])
    assert losses(tmp_path) == losses(unbroken[0])


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
    assert checkpoint_names(tmp_path) == {"1"}
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
    assert checkpoint_names(tmp_path) == {"5"}


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
