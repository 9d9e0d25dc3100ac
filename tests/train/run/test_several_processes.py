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
import tiny_models
from evaluation_stand_ins import write_corpus
from paths import ROOT
from tiny_pretraining import write_run
from token_records import image_record, write_dataset

from emu3_jax import exit_codes
from emu3_jax.config import load_config
from emu3_jax.data.codec.fingerprint import vision_fingerprint
from emu3_jax.evaluate.evaluator import read_results
from emu3_jax.interop.vision import tokenizer_files
from emu3_jax.train.__main__ import train_config
from emu3_jax.train.run import distributed
from emu3_jax.train.run.metrics import read_metrics

# The command itself, with a record of the rows that a process reads. In the middle of evaluation no
# weight that is in pieces may lie whole on one device, nor all its pieces on those of one process.
COMMAND = """
import runpy, sys
import jax
from emu3_jax.data.tokens import pipeline
real = pipeline.row_stream
def recorded(datasets, entries, row, rows):
    print("reads row", row, flush=True)
    return real(datasets, entries, row, rows)
pipeline.row_stream = recorded
from emu3_jax.data import media
read_image = media.read_image
def read_and_say(path, **keywords):
    print("reads file", path, flush=True)
    return read_image(path, **keywords)
media.read_image = read_and_say
from emu3_jax.data.codec.canvases import Batcher
from emu3_jax.evaluate import during_training
from emu3_jax.generate import scoring
from emu3_jax.generate.decoding.session import Session
in_pieces = set()
def look(function):
    def watched(*arguments, **keywords):
        for array in jax.live_arrays():
            copied = array.is_fully_addressable or array.is_fully_replicated
            if copied and (array.shape, array.dtype) in in_pieces:
                sys.exit(f"a weight {array.shape} was copied")
        return function(*arguments, **keywords)
    return watched
scoring.Tally.add, Session._advance = look(scoring.Tally.add), look(Session._advance)
Batcher.add = look(Batcher.add)
run_all = during_training.run_all
def evaluated(subject, evaluators):
    tokenizers = [e.tokenizer[1] for e in evaluators if e.name == "emoji_captions"]
    leaves = jax.tree.leaves((subject.language_model.variables, tokenizers))
    pieces, whole = ({(x.shape, x.dtype) for x in leaves if x.is_fully_replicated is there}
                     for there in (False, True))
    in_pieces.update(pieces - whole)
    print("weights in pieces", len(in_pieces), flush=True)
    return run_all(subject, evaluators)
during_training.run_all = evaluated
runpy.run_module(sys.argv[0], run_name="__main__")
"""


# In front of COMMAND: the process kills itself inside the save of one step, where it writes its
# third array, or where it would rename what is whole.
DIES = """
import os, signal, sys
import tensorstore
folder, moment = {folder!r}, {moment!r}
arrays, real_open = [], tensorstore.open
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def renaming(event, arguments):
    if event == "os.rename" and folder in str(arguments[0]) and str(arguments[1]).endswith(moment):
        die()
def opened(spec, *arguments, **keywords):
    arrays.append(folder in str(spec) and "ocdbt.process_" in str(spec))
    if moment == "arrays" and sum(arrays) == 3:
        die()
    return real_open(spec, *arguments, **keywords)
tensorstore.open = opened
sys.addaudithook(renaming)
"""


class Job:
    """Processes of one command on this machine, with so many devices in all.

    `dies` is (number of a process, the values of DIES) if one of them is to die.
    """

    def __init__(self, folder, module, processes, devices, arguments, dies=(None, {})):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.logs = [folder / f"{module}_{port}_{index}" for index in range(processes)]
        self.processes = []
        for index, log in enumerate(self.logs):
            script = COMMAND.replace("sys.argv[0]", repr(module))
            if index == dies[0]:
                script = DIES.format(**dies[1]) + script
            command = [
                *(sys.executable, "-c", script, *arguments),
                *(f"--coordinator=127.0.0.1:{port}", f"--processes={processes}"),
                *(f"--process={index}", "--host_timeout=20"),
            ]
            self.processes.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    stdout=open(f"{log}.out", "w"),
                    stderr=open(f"{log}.err", "w"),
                    env=os.environ
                    | {"JAX_NUM_CPU_DEVICES": str(devices // processes)}
                    | {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir},
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


def _train(folder, workdir, processes, devices=8, dies=(None, {}), **overrides):
    arguments = [f"--config={folder / 'config.py'}", f"--workdir={workdir}", "--allow_changes"]
    arguments += [f"--config.{key}={value}" for key, value in overrides.items()]
    return Job(folder, "emu3_jax.train", processes, devices, arguments, dies)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Folder with data, a config, and in "one" what one process makes of them."""
    folder = tmp_path_factory.mktemp("processes")
    write_corpus(folder)
    tiny_models.save_vision_tokenizer(folder / "weights", codebook_size=100)
    tokenizer = tokenizer_files.load(folder / "weights")
    path = tiny_models.save_vision_run(folder / "tokenizer", *tokenizer)
    shared = {"every": 3, "limit": 3}
    likelihood = dict(evaluator="likelihood", tokens=str(folder / "tokens"), **shared)
    captions = dict(evaluator="emoji_captions", vision_tokenizer=str(path), data=str(folder))
    changes = {"evaluation": (likelihood, captions | shared)}
    changes |= {"data.sequence_length": 128, "run.mesh.data": 2, "run.mesh.fsdp": 4}
    config = write_run(folder, 40, **changes)
    records, fingerprint = [image_record(i) for i in range(40)], vision_fingerprint(*tokenizer)
    write_dataset(folder / "tokens", records, vision_tokenizer=fingerprint)
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
    "processes, devices, mesh",
    [
        (2, 8, {"data": 1, "fsdp": 8}),  # each process holds half of every weight
        # Processes that share rows and hold different positions of them.
        pytest.param(4, 8, {"fsdp": 1, "context": 4}, marks=pytest.mark.slow),
        pytest.param(2, 2, {"data": 1, "fsdp": 2}, marks=pytest.mark.slow),
    ],
    ids=["2", "4 with context", "2 of one device"],
)
def test_several_processes_train_and_evaluate_as_one_and_one_goes_on(
    reference, processes, devices, mesh
):
    workdir = reference / f"of_{processes}_and_{devices}"
    overrides = {f"run.mesh.{axis}": size for axis, size in mesh.items()}
    job = _train(reference, workdir, processes, devices, **{"run.steps": 3}, **overrides)
    assert job.end() == [0] * processes, job.err(0)[-2000:] + job.err(1)[-2000:]
    for index in range(processes):
        rows = {int(line.split()[-1]) for line in job.out(index).splitlines() if "row" in line[:9]}
        share = 4 * (index * 2 // processes)
        assert rows == set(range(share, share + 4))
        said = [line for line in job.out(index).splitlines() if line.startswith("step ")]
        assert len(said) == (5 if index == 0 else 0)  # three steps and two evaluations
        assert "weights in pieces" in job.out(index)
        assert "weights in pieces 0" not in job.out(index)
    said = [job.out(index).splitlines() for index in range(processes)]
    files = [{line for line in lines if line.startswith("reads file")} for lines in said]
    assert all(own < set.union(*files) for own in files)  # each decodes a share of the images
    starts = (workdir / "starts.jsonl").read_text().splitlines()
    assert [json.loads(line)["processes"] for line in starts] == [processes]
    # One process goes on with the checkpoint of several, at the same place in the data.
    train_config(load_config(str(reference / "config.py")), str(workdir), allow_changes=True)
    _assert_same(workdir, reference / "one")


@pytest.mark.slow
def test_the_command_evaluates_with_several_processes_as_with_one(reference):
    found = []
    for processes in (1, 2):
        output = reference / f"evaluated_by_{processes}"
        arguments = [
            "--evaluators=likelihood,codebook_health,reconstruction,emoji_retrieval",
            *(f"--model={reference / 'one'}", f"--vision_tokenizer={reference / 'tokenizer'}"),
            *(f"--data={reference}", f"--tokens={reference / 'tokens'}", f"--output={output}"),
            *("--limit=3", "--batch_size=4", "--candidates=2"),
        ]
        job = Job(reference, "emu3_jax.evaluate", processes, processes, arguments)
        assert job.end() == [0] * processes, job.err(0)[-2000:] + job.err(processes - 1)[-2000:]
        assert all(not job.out(index).count("written") for index in range(1, processes))
        results = read_results(output).items()
        metrics = {f"{name}/{k}": v for name, values in results for k, v in values.items()}
        found.append({k: v for k, v in metrics.items() if "seconds" not in k})
    one, two = found
    assert one.keys() == two.keys() and len(one) > 30
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=2e-5)


def _assert_ended_for_loss(job, victim):
    """The other of two processes ended with the code that restarts it, and a sentence."""
    code, message = job.processes[1 - victim].returncode, job.err(1 - victim)
    if code == -signal.SIGABRT:
        # JAX's runtime aborts if it hears of the death before an exchange breaks.
        # docs/how_to/pods.md has both codes, and launchers restart for both.
        assert "another task died" in message
        return
    assert code == exit_codes.TRANSIENT, message
    (said,) = [line for line in message.splitlines() if line.startswith("Error in process")]
    assert "another process has died" in said


@pytest.mark.slow
@pytest.mark.parametrize("saves", ["never", "at each step"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_crash_of_one_ends_the_others_with_a_code_to_restart_on(reference, victim, saves):
    overrides = {f"evaluation.{index}.every": 0 for index in (0, 1)} | {"run.steps": 100_000}
    overrides["run.checkpoint.every"] = 1 if saves == "at each step" else 100_000
    job = _train(reference, reference / f"crash_{victim}_{saves}", 2, **overrides)
    job.wait_for("step 5/")
    job.processes[victim].kill()
    killed = time.monotonic()
    codes = job.end(60)
    assert time.monotonic() - killed < 20  # --host_timeout: without waiting for a save
    assert codes[victim] == -signal.SIGKILL
    _assert_ended_for_loss(job, victim)


@pytest.mark.slow
@pytest.mark.parametrize(
    "victim, step, moment",  # the save of step 6 is the last, for which all processes wait
    [(0, 4, "arrays"), (1, 4, "arrays"), (1, 6, "arrays"), (0, 6, "/state"), (0, 4, "/4")],
)
def test_a_death_in_a_save_ends_the_others_and_the_run_goes_on(reference, victim, step, moment):
    workdir = reference / f"saving_{step}_{victim}_{moment.strip('/')}"
    # Each process holds half of every weight, and writes it.
    sizes = {"run.mesh.data": 1, "run.mesh.fsdp": 8}
    place = f"/checkpoints/{step}.orbax-checkpoint-tmp"
    dies = (victim, {"folder": place, "moment": moment})
    job = _train(reference, workdir, 2, dies=dies, **sizes)
    assert job.processes[victim].wait(1800) == -signal.SIGKILL, job.err(victim)
    killed = time.monotonic()
    job.end(60)
    # In the middle an exchange breaks at once. At the end there is none, only the save to wait for.
    assert time.monotonic() - killed < (20 if step == 4 else 40)  # --host_timeout: 20
    _assert_ended_for_loss(job, victim)
    left = {child.name for child in (workdir / "checkpoints").iterdir()}
    assert f"{step}.orbax-checkpoint-tmp" in left
    assert max(int(name) for name in left if name.isdigit()) == step - 2

    job = _train(reference, workdir, 2, **sizes)
    assert job.end() == [0, 0], job.err(0)[-2000:] + job.err(1)[-2000:]
    assert f"step {step - 1}/" in job.out(0) and f"step {step - 2}/" not in job.out(0)
    left = {child.name for child in (workdir / "checkpoints").iterdir()}
    assert "6" in left and not any("tmp" in name for name in left)
    _assert_same(workdir, reference / "one")


@pytest.mark.slow
def test_a_preemption_notice_to_one_saves_all(reference):
    workdir = reference / "preempted"
    overrides = {"run.steps": 100_000, "run.checkpoint.every": 100_000}
    job = _train(reference, workdir, 2, **overrides)
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
