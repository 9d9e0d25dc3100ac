"""Several processes train as one: real subprocesses, real collectives, the real command."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tiny_pretraining import write_run

from emu3_jax.config import load_config
from emu3_jax.train import distributed
from emu3_jax.train.__main__ import train_config
from emu3_jax.train.metrics import read_metrics

# The command itself, and a record of the rows that a process reads. Evaluation uses the weights
# where they lie, or with WHOLE_WEIGHTS a copy of them.
COMMAND = """
import os, runpy, sys
from emu3_jax.data import pipeline
real = pipeline.row_stream
def recorded(datasets, entries, row, rows):
    print("reads row", row, flush=True)
    return real(datasets, entries, row, rows)
pipeline.row_stream = recorded
from emu3_jax.evaluate import registry
from emu3_jax.train import distributed
if os.environ.get("WHOLE_WEIGHTS"):
    registry.ON_THE_MESH = frozenset()
else:
    distributed.to_this_host = lambda tree: sys.exit("the weights were copied")
sys.argv[0] = "train"
runpy.run_module("emu3_jax.train", run_name="__main__")
"""


class Job:
    """Processes of one run on this machine, eight devices in all."""

    def __init__(self, folder, config, workdir, processes, environment=(), **overrides):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.logs = [folder / f"{workdir.name}_{index}" for index in range(processes)]
        self.processes = []
        for index, log in enumerate(self.logs):
            command = [
                *(sys.executable, "-c", COMMAND, f"--config={config}", f"--workdir={workdir}"),
                *(f"--coordinator=127.0.0.1:{port}", f"--processes={processes}"),
                *(f"--process={index}", "--host_timeout=20", "--allow_changes"),
                *(f"--config.{key}={value}" for key, value in overrides.items()),
            ]
            self.processes.append(
                subprocess.Popen(
                    command,
                    cwd=pathlib.Path(__file__).parents[1],
                    stdout=open(f"{log}.out", "w"),
                    stderr=open(f"{log}.err", "w"),
                    env=os.environ
                    | {"JAX_NUM_CPU_DEVICES": str(8 // processes)}
                    | {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
                    | dict(environment),
                )
            )

    def out(self, index):
        return pathlib.Path(f"{self.logs[index]}.out").read_text()

    def err(self, index):
        return pathlib.Path(f"{self.logs[index]}.err").read_text()

    def wait_for(self, text, seconds=1800):
        """Until the first process has printed `text`."""
        until = time.monotonic() + seconds
        while text not in self.out(0):
            assert self.processes[0].poll() is None, self.err(0)
            assert time.monotonic() < until, self.out(0)
            time.sleep(0.05)

    def end(self, seconds=1800):
        """Exit codes."""
        try:
            return [process.wait(seconds) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Folder with data, a config, and in "one" what one process makes of them."""
    folder = tmp_path_factory.mktemp("processes")
    config = write_run(folder, 40, **{"run.mesh.data": 2, "run.mesh.fsdp": 4})
    train_config(load_config(str(config)), str(folder / "one"))
    return folder


def _numbers(workdir):
    """Everything logged but speed: names, and a row of values a step."""
    rows = [
        {name: row[name] for name in sorted(row) if "second" not in name}
        for row in read_metrics(workdir)
    ]
    return [list(row) for row in rows], [list(row.values()) for row in rows]


def _assert_same(workdir, expected):
    names, found = _numbers(workdir)
    wanted_names, wanted = _numbers(expected)
    assert names == wanted_names
    for row, other in zip(found, wanted, strict=True):
        # Sums over eight devices in another order, in float32, and six steps of learning.
        np.testing.assert_allclose(row, other, rtol=2e-5)


@pytest.mark.parametrize(
    "processes, mesh, environment",
    [
        (2, {}, {}),
        # Processes that share rows and hold different positions of them.
        pytest.param(4, {"fsdp": 1, "context": 4}, {}, marks=pytest.mark.slow),
        pytest.param(2, {}, {"WHOLE_WEIGHTS": "1"}, marks=pytest.mark.slow),
    ],
    ids=["2", "4 with context", "2 with copies of the weights"],
)
def test_several_processes_train_as_one_and_one_goes_on(reference, processes, mesh, environment):
    workdir = reference / f"of_{processes}{'_copied' if environment else ''}"
    overrides = {f"run.mesh.{axis}": size for axis, size in mesh.items()}
    job = Job(reference, reference / "config.py", workdir, processes, environment,
              **{"run.steps": 3}, **overrides)  # fmt: skip
    assert job.end() == [0] * processes, job.err(0)[-2000:] + job.err(1)[-2000:]
    for index in range(processes):
        rows = {int(line.split()[-1]) for line in job.out(index).splitlines() if "row" in line[:9]}
        share = 4 * (index * 2 // processes)
        assert rows == set(range(share, share + 4))
        said = [line for line in job.out(index).splitlines() if line.startswith("step ")]
        assert len(said) == (4 if index == 0 else 0)  # three steps and an evaluation
    starts = (workdir / "starts.jsonl").read_text().splitlines()
    assert [json.loads(line)["processes"] for line in starts] == [processes]
    # One process goes on with the checkpoint of several, at the same place in the data.
    train_config(load_config(str(reference / "config.py")), str(workdir), allow_changes=True)
    _assert_same(workdir, reference / "one")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_crash_of_one_ends_the_others(reference, victim):
    job = Job(reference, reference / "config.py", reference / f"crash_{victim}", 2,
              **{"run.steps": 100_000, "evaluation.every": 0})  # fmt: skip
    job.wait_for("step 5/")
    job.processes[victim].kill()
    killed = time.monotonic()
    codes = job.end(60)
    assert time.monotonic() - killed < 40  # twice --host_timeout
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] not in (0, None)
    message = job.err(1 - victim)
    assert "another process has died" in message or "another task died" in message


@pytest.mark.slow
def test_a_preemption_notice_to_one_saves_all(reference):
    workdir = reference / "preempted"
    job = Job(reference, reference / "config.py", workdir, 2,
              **{"run.steps": 100_000, "run.checkpoint.every": 100_000})  # fmt: skip
    job.wait_for("step 5/")
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.end() == [143, 143]
    (saved,) = (workdir / "checkpoints").iterdir()
    assert f"interrupted: saved step {saved.name};" in job.out(0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ((None, 2, 0), "--processes and --process go with --coordinator"),
        (("auto", None, 1), "--processes and --process go with --coordinator"),
        (("somewhere", 2, 0), "--coordinator must be HOST:PORT or auto, got 'somewhere'"),
        (("host:1", 2, None), "needs --processes and --process"),
        (("host:1", 2, 2), "--process=2 must be one of 0 to 1"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(ValueError, match=message):
        distributed.initialize(*settings, host_timeout=60)


def test_a_mesh_over_all_devices_is_made_of_each_host_s_rows():
    """Every device gets its piece of the rows that its host has, whatever the layout."""
    rows = np.arange(8 * 6).reshape(8, 6)
    mesh = jax.make_mesh((4, 2), ("data", "context"))
    layout = jax.NamedSharding(mesh, jax.P("data", "context"))
    whole = distributed.global_array(rows, layout, None)
    np.testing.assert_array_equal(np.asarray(whole), rows)
    assert whole.sharding == layout and distributed.gather({"a": 1}) == [{"a": 1}]
