"""A task defined outside the package works in every command."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from line_task import write_config
from paths import ROOT
from toy_task import FEATURES

from emu3_jax.evaluate.evaluator import read_results
from emu3_jax.train.run.metrics import read_metrics


def _run(*words, code=0):
    """A command of the package, beside which lies the task's module."""
    done = subprocess.run(
        [sys.executable, "-m", *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ
        | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests/support/models'}"}
        | {"JAX_NUM_CPU_DEVICES": "1"}
        | {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir},
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A config; whole/, a run of six steps; parts/, one that was ended after two and resumed."""
    folder = tmp_path_factory.mktemp("line")
    config = f"--config={write_config(folder)}"
    _run("emu3_jax.train", config, f"--workdir={folder / 'whole'}")
    parts = f"--workdir={folder / 'parts'}"
    _run("emu3_jax.train", config, parts, "--config.run.steps=2")
    _run("emu3_jax.train", config, parts, "--allow_changes")
    return folder


def test_it_trains_and_goes_on_where_it_was(folder):
    rows = {}
    for name in ("whole", "parts"):
        found = {row["step"]: row for row in read_metrics(folder / name) if "loss" in row}
        rows[name] = [found[step]["loss"] for step in range(1, 7)]
    assert rows["whole"] == rows["parts"] and rows["whole"][-1] < rows["whole"][0]
    assert (folder / "whole" / "line.json").exists()
    assert read_metrics(folder / "whole")[-1]["validation/kernel/sum"]


def test_its_checkpoints_leave_the_base_out(folder):
    tree = (folder / "whole" / "checkpoints" / "6" / "state" / "_METADATA").read_text()
    assert "adapter" in tree and "base" not in tree


def test_it_is_evaluated_as_it_was_while_it_trained(folder):
    run, output = f"--model={folder / 'whole'}", folder / "evaluated"
    _run("emu3_jax.evaluate", run, f"--output={output}")
    trained = read_metrics(folder / "whole")[-1]["validation/kernel/sum"]
    assert read_results(output)["kernel"]["sum"] == pytest.approx(trained, rel=1e-6)


def test_it_is_exported_with_its_base(folder):
    for mesh in ((), ("--mesh=data=1",)):
        output = folder / f"exported{len(mesh)}"
        _run(
            "emu3_jax.convert", "export", f"--model={folder / 'whole'}", f"--output={output}", *mesh
        )
        base = np.array(json.loads((folder / "base.json").read_text()), np.float32)
        kernel = np.load(output / "line.npy")
        assert kernel.shape == (FEATURES, FEATURES)
        assert 0 < np.abs(kernel - base).max() < 1  # the adapter was added to it


def test_it_is_compiled_ahead_of_time(folder):
    aot = ("emu3_jax.aot", f"--config={folder / 'line_config.py'}", "--topology=cpu:1")
    (*_, line) = _run(*aot, "--plan").strip().splitlines()
    assert json.loads(line)["arguments_gib"] > 0
    message = _run(*aot, "--program=sample", code=2)
    assert (
        "--program=sample is not a program of the task line_task:LineTask, which has train"
        in message
    )


def test_what_it_is_not_is_said(folder):
    run = f"--model={folder / 'whole'}"
    message = _run("emu3_jax.evaluate", run, "--evaluators=likelihood", "--output=x", code=2)
    assert message.startswith("Error: ") and "\n" not in message.strip()
