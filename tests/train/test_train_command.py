"""The command: all errors of the input come before anything is written."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import jax
import pytest
from paths import ROOT
from tiny_pretraining import write_run
from token_records import image_record, write_dataset

import emu3_jax
from emu3_jax import config as config_lib
from emu3_jax import vocab
from emu3_jax.sequence import Grammar
from emu3_jax.text import SentencePieceTokenizer
from emu3_jax.text.sentencepiece import train

# One process for all attempts: importing takes longer than training these steps.
ATTEMPTS = """
import hashlib, json, pathlib, sys
from emu3_jax.config import apply_overrides, load_config
from emu3_jax.train.__main__ import train_config
for workdir, overrides in json.loads(sys.argv[2]):
    config = load_config(sys.argv[1])
    apply_overrides(config, overrides)
    message = ""
    try:
        train_config(config, workdir, allow_changes=True)
    except ValueError as error:
        message = str(error)
    files = {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(pathlib.Path(workdir).rglob("*"))
    }
    print("attempt", json.dumps([message, files]), flush=True)
"""

REFUSED = {
    "another model": ({"model.num_layers": "3"}, "checkpoint .* does not fit this config"),
    "a mesh": ({"run.mesh.data": "2"}, "needs 2 devices, there are 1"),
    "a key of evaluation": ({"evaluation.0.evry": "3"}, r"did you mean evaluation\[0\].every"),
    "no evaluation data": (
        {"evaluation.0.tokens": "nowhere"},
        r"evaluation\[0\].tokens='nowhere' cannot be used by likelihood: neither nowhere",
    ),
    "another evaluator": (
        {"evaluation.0.evaluator": "likelyhood"},
        r"evaluation\[0\].evaluator: there is no evaluator 'likelyhood' \(did you mean likelihood",
    ),
    # What ids mean; --allow_changes lets other data in, but not these.
    "a tokenizer trained anew, of the same size": (
        {
            "text_tokenizer": "{folder}/anew.model",
            "data.mixture.0.dataset": "{folder}/anew",
            "evaluation.0.tokens": "{folder}/anew",
        },
        "run has the text tokenizer .*, but the data has .*; remake one of the two",
    ),
    "another video format": (
        {"data.mixture.0.dataset": "{folder}/univla"},
        "run has the video format paper, but the data has univla",
    ),
    "other sizes of images": (
        {"data.mixture.0.dataset": "{folder}/larger"},
        "run has the max_pixels 4096, but the data has 8192",
    ),
    "the very first step": ({"run.steps": "4", "run.accumulation": "3"}, "run.accumulation=3"),
}
# Of these, the refused attempts to begin in a new directory.
NEW = ("a mesh", "no evaluation data", "the very first step")


def environment():
    """Of a command on one device, which shares the tests' compiled programs."""
    cache = jax.config.jax_compilation_cache_dir
    return {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_COMPILATION_CACHE_DIR": cache}


@pytest.fixture(scope="module")
def attempts(tmp_path_factory):
    """(message, {file: hash}) after: a run, each refused attempt to resume it, a good one; and
    after two refused runs in fresh directories."""
    folder = tmp_path_factory.mktemp("command")
    tokenizer = folder / "text.model"
    changed = {"run.steps": 2, "text_tokenizer": str(tokenizer)}
    config = write_run(folder, 8, evaluate_every=2, **changed)
    for path, words in ((tokenizer, "ein roter Apfel"), (folder / "anew.model", "a red apple")):
        train([words], 275, path)
    first, anew = (SentencePieceTokenizer(path) for path in (tokenizer, folder / "anew.model"))
    assert first.size == anew.size
    grammar = Grammar(vocab.small(first.size, 100), first)
    records, limits = [image_record(i) for i in range(8)], {"min_pixels": 64, "max_pixels": 4096}
    write_dataset(folder / "tokens", records, grammar, recipe=limits)
    write_dataset(folder / "anew", records, Grammar(grammar.vocab, anew), recipe=limits)
    write_dataset(folder / "larger", records, grammar, recipe=limits | {"max_pixels": 8192})
    write_dataset(folder / "univla", records, Grammar(grammar.vocab, first, "univla"))
    run = str(folder / "run")
    changes = [{k: v.format(folder=folder) for k, v in c.items()} for c, _ in REFUSED.values()]
    plan = [(run, {}), *((run, change) for change in changes)]
    plan += [(run, {"run.steps": "3"})]
    plan += [(str(folder / "new"), REFUSED[name][0]) for name in NEW]
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, str(config), json.dumps(plan)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("attempt ")]
    found = [json.loads(line.removeprefix("attempt ")) for line in lines]
    names = ["run", *REFUSED, "resumed", *(f"new: {name}" for name in NEW)]
    return dict(zip(names, found, strict=True))


def test_a_run_leaves_what_it_promises(attempts):
    message, files = attempts["run"]
    names = {pathlib.Path(name).name for name in files}
    assert not message
    assert {"config.json", "vocab.json", "bundle.json", "metrics.jsonl", "checkpoints"} <= names
    assert {"starts.jsonl", "goodput.jsonl", "heartbeat.json"} <= names


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_resume_leaves_the_directory_as_it_was(attempts, name):
    message, files = attempts[name]
    assert re.search(REFUSED[name][1], message)
    assert files == attempts["run"][1]


def test_a_resume_that_goes_writes_its_config(attempts):
    message, files = attempts["resumed"]
    assert not message
    (config,) = (pathlib.Path(name) for name in files if name.endswith("config.json"))
    assert config_lib.read_config(config.parent)["run"]["steps"] == 3


def test_each_start_is_recorded(attempts):
    (file,) = (pathlib.Path(name) for name in attempts["run"][1] if name.endswith("starts.jsonl"))
    starts = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(starts) == 2  # the refused ones have not started
    for start in starts:
        assert start["packages"]["jax"] == jax.__version__ and start["processes"] == 1
        assert start["packages"]["emu3_jax"] == emu3_jax.__version__
        assert start["devices"] == "1 x cpu" and start["command"][0] == sys.executable
        assert start["revision"] is None or re.match(
            r"[0-9a-f]{40}(\+changes)?$", start["revision"]
        )


@pytest.mark.parametrize("name", NEW)
def test_a_refused_first_run_makes_no_directory(attempts, name):
    message, files = attempts[f"new: {name}"]
    assert message and not files


def test_a_run_that_was_stopped_saves_and_ends_with_the_signal_s_code(tmp_path):
    many = {"run.steps": 100_000, "run.checkpoint.every": 100_000, "evaluate_every": 0}
    command = [sys.executable, "-m", "emu3_jax.train", f"--config={write_run(tmp_path, 8, **many)}"]
    runs = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        words = [*command, f"--workdir={tmp_path / number.name}"]
        runs[number] = subprocess.Popen(
            words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
        )
    for number, process in runs.items():
        with process:
            for line in process.stdout:
                if line.startswith("step 3/"):
                    process.send_signal(number)
                    break
            rest = process.stdout.read()
        (saved,) = (tmp_path / number.name / "checkpoints").iterdir()
        assert f"interrupted: saved step {saved.name};" in rest
        assert process.returncode == 128 + number
