"""Runs that are killed, in the middle of a save as well, resume to the unbroken run bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from paths import ROOT
from toy_task import ToyTask, assert_same_trees, losses, run_config

from emu3_jax.train.loop import train

RUN = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", sys.argv[3])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
sys.path.insert(0, sys.argv[2])
import time
from toy_task import ToyTask, run_config
from emu3_jax.train.loop import Callback, train
class Slow(Callback):
    every = 1
    def __call__(self, step, state, writer):
        time.sleep(0.02)
        return {}
train(ToyTask(noise=0.1), run_config(every=2, ema_decay=0.9), sys.argv[1], callbacks=[Slow()])
"""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A whole run: its directory and final state."""
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, train(ToyTask(noise=0.1), run_config(ema_decay=0.9), workdir)


def _is_saving(workdir):
    return any("tmp" in child.name for child in (workdir / "checkpoints").glob("*"))


def _stop_in_a_save(workdir, process, delays):
    """Stops the process while a checkpoint is being written, which it has to be caught at."""
    while process.poll() is None:
        if _is_saving(workdir):
            time.sleep(next(delays, 0.0))
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            if _is_saving(workdir):
                return
            process.send_signal(signal.SIGCONT)


def _kill_and_resume(workdir, moments, seed, cache, expected):
    """Kills the run at each of the moments ("any" or "save"), then lets it come through."""
    rng, unfinished = random.Random(seed), 0
    support = ROOT / "tests/support/models"
    command = [sys.executable, "-c", RUN, str(workdir), str(support), str(cache)]
    for moment in [*moments, None]:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        )
        if moment is not None:
            for line in process.stdout:
                if line.startswith("step "):  # it is stepping and saving now
                    break
            if moment == "save":
                _stop_in_a_save(workdir, process, iter([rng.uniform(0.0, 0.005)]))
            else:
                time.sleep(rng.uniform(0.0, 0.6))
            process.kill()
            process.wait()
            unfinished += _is_saving(workdir)
        output = process.communicate()[0]
        assert moment is not None or process.returncode == 0, output
    state = train(ToyTask(noise=0.1), run_config(every=2, ema_decay=0.9), workdir)
    assert_same_trees(state, expected[1])
    assert losses(workdir) == losses(expected[0])
    assert unfinished  # else no kill has hit a save


def test_killed_and_resumed(unbroken, tmp_path):
    moments = ["any", "save", "any"]
    _kill_and_resume(tmp_path / "run", moments, 0, tmp_path / "cache", unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_killed_at_twenty_moments_and_resumed(unbroken, tmp_path, seed):
    moments = ["any", "save", "save", "any"]
    _kill_and_resume(tmp_path / "run", moments, seed, tmp_path / "cache", unbroken)
