"""The evaluation command: entries from flags, a file or a run, and the figures of training."""

import json
import os
import re
import subprocess
import sys

import conftest
import evaluation_stand_ins as parts
import jax
import pytest
import tiny_models
from paths import ROOT
from tiny_pretraining import write_run

from emu3_jax.config import read_config
from emu3_jax.evaluate import evaluator, registry
from emu3_jax.train.run.metrics import read_metrics

# One process that has imported everything; each command is a fork of it (command_runner.py).
ATTEMPTS = """
import json, pathlib, sys
import command_runner
from emu3_jax.evaluate import registry  # and all that it imports; no device is touched
from emu3_jax.train import loop
for number, words in enumerate(json.loads(sys.argv[1])):
    output = pathlib.Path(f"output_{number}").absolute()
    code = command_runner.run(".", words, str(output))
    print("attempt", json.dumps([code, output.read_text()]), flush=True)
"""
EVALUATE = "emu3_jax.evaluate"
VISION = f"--vision_tokenizer={conftest.GOLDEN / 'vision_tokenizer'}"
CONFIG = """
from ml_collections import ConfigDict
def get_config(arg=""):
    first = dict(evaluator="likelihood", tokens="tokens", batch_size=4)
    return ConfigDict(dict(evaluation=(first, dict(first, name="few", limit=8))))
"""

REFUSED = {
    "no output": (["--evaluators=likelihood"], "--output is not set"),
    "nothing to do": (["--output=out"], "--evaluators is not set; known: reconstruction, code"),
    "an unknown evaluator": (
        ["--output=out", "--evaluators=reconstruktion"],
        r"there is no evaluator 'reconstruktion' \(did you mean reconstruction\?\)",
    ),
    "one twice": (
        ["--output=out", "--evaluators=likelihood,likelihood"],
        "there are two entries of the name 'likelihood'",
    ),
    "no subject": (
        ["--output=out", "--evaluators=reconstruction", "--data=corpus"],
        "--vision_tokenizer is not set; reconstruction measures a vision tokenizer",
    ),
    "no data": (["--output=out", "--evaluators=reconstruction", VISION], "--data is not set"),
    "a wrong folder": (
        ["--output=out", "--evaluators=reconstruction", VISION, "--data=gone"],
        r"--data='gone' cannot be used by reconstruction: gone has no split 'validation'",
    ),
    "a flag of another": (
        ["--output=out", "--evaluators=reconstruction,codebook_health", VISION, "--data=corpus",
         "--guidance=3"],
        "--guidance is a setting of none of the evaluators reconstruction, codebook_health",
    ),
    "a model of nobody": (
        ["--output=out", "--evaluators=reconstruction", VISION, "--data=corpus", "--model=run"],
        "--model is a setting of none of the evaluators reconstruction",
    ),
    "a value out of range": (
        ["--output=out", "--evaluators=likelihood", "--model=run", "--tokens=tokens",
         "--limit=-1"],
        "likelihood: limit must be at least 0, not -1",
    ),
    "another tokenizer": (
        ["--output=out", "--evaluators=emoji_retrieval", "--model=language", VISION,
         "--data=corpus"],
        "--vision_tokenizer='.*' cannot be used by emoji_retrieval: it is the vision tokenizer",
    ),
    "a file and names": (
        ["--output=out", "--evaluators=likelihood", "--config=few.py"],
        "--evaluators and --config both choose the evaluators",
    ),
    "weights without entries": (["--output=out", "--model=language"], "language has no `evalu"),
    "a wrong key": (
        ["--output=out", "--config=few.py", "--model=run", "--config.evaluation.1.limt=3"],
        r"evaluation\[1\].limt does not exist; did you mean evaluation\[1\].limit",
    ),
    "missing tokens of an entry": (
        ["--output=out", "--config=few.py", "--model=run", "--config.evaluation.1.tokens=gone"],
        r"evaluation\[1\].tokens='gone' cannot be used by few: neither gone nor gone/validation",
    ),
}  # fmt: skip
GOOD = {
    "of the run": ["--model=run", "--output=of_run"],
    "flags over the run": ["--model=run", "--output=over_run", "--limit=8", "--batch_size=4"],
    "of a file": ["--config=few.py", "--model=run", "--config.evaluation.0.rows=64",
                  "--output=of_file"],
    "of flags": ["--evaluators=reconstruction", VISION, "--data=corpus", "--limit=1",
                 "--splits=validation_combination", "--output=of_flags"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """run/, a trained run with its tokens; language/ and vision/, models; corpus/; few.py."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_run(folder, 16, **{"run.steps": 3})
    (folder / "few.py").write_text(CONFIG)
    (folder / "corpus").mkdir()
    parts.write_corpus(folder / "corpus")
    tiny_models.save_models(folder)
    return folder


@pytest.fixture(scope="module")
def attempts(folder):
    """Name → (exit code, output)."""
    train = ["emu3_jax.train", "--config=config.py", "--workdir=run"]
    words = [train, *([EVALUATE, *w] for w, _ in REFUSED.values())]
    words += [[EVALUATE, *w] for w in GOOD.values()]
    environment = {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests/support'}",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, json.dumps(words)],
        cwd=folder, capture_output=True, text=True, check=False, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("attempt ")]
    found = [json.loads(line.removeprefix("attempt ")) for line in lines]
    assert found[0][0] == 0, found[0][1]
    return dict(zip([*REFUSED, *GOOD], found[1:], strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_in_one_sentence(folder, attempts, name):
    code, output = attempts[name]
    assert code == 2
    assert re.search("Error: .*" + REFUSED[name][1], output.splitlines()[-1]), output
    assert output.count("Error: ") == 1 and not (folder / "out").exists()


def _results(folder, attempts, name):
    """(results.json, metrics) of a command that works."""
    code, output = attempts[name]
    assert code == 0, output
    path = folder / GOOD[name][-1].partition("=")[2]
    (path,) = (folder / w.partition("=")[2] for w in GOOD[name] if w.startswith("--output="))
    return json.loads((path / "results.json").read_text()), evaluator.read_results(path)


def test_a_run_is_evaluated_as_it_was_while_it_trained(folder, attempts):
    record, metrics = _results(folder, attempts, "of the run")
    last = read_metrics(folder / "run")[-1]
    trained = {
        name.removeprefix("validation/likelihood/"): value
        for name, value in last.items()
        if name.startswith("validation/")
    }
    assert last["step"] == 3 and len(trained) > 5
    del trained["seconds"], metrics["likelihood"]["seconds"]
    assert metrics["likelihood"] == pytest.approx(trained, rel=1e-6)
    assert record["subject"]["label"] == "run at step 3"
    entries = read_config(folder / "run")["evaluation"]
    assert registry.make(record["evaluation"]) == registry.make(entries)


def test_flags_change_the_entries_of_a_run(folder, attempts):
    record, metrics = _results(folder, attempts, "flags over the run")
    (entry,) = record["evaluation"]
    assert (entry["limit"], entry["batch_size"], entry["every"]) == (8, 4, 3)
    whole = _results(folder, attempts, "of the run")[1]["likelihood"]
    assert 0 < metrics["likelihood"]["targets"] < whole["targets"]


def test_a_file_states_several_entries_of_one_evaluator(folder, attempts):
    record, metrics = _results(folder, attempts, "of a file")
    assert [entry["rows"] for entry in record["evaluation"]] == [64, 0]
    assert list(metrics) == ["likelihood", "few"]
    assert (folder / "of_file" / "few_by_task_and_class.csv").is_file()
    whole = _results(folder, attempts, "of the run")[1]["likelihood"]
    few = _results(folder, attempts, "flags over the run")[1]["likelihood"]
    assert metrics["likelihood"]["nats_all"] == pytest.approx(whole["nats_all"], rel=1e-6)
    assert metrics["few"]["nats_all"] == pytest.approx(few["nats_all"], rel=1e-6)


def test_flags_alone_evaluate_weights_on_a_folder(folder, attempts):
    record, metrics = _results(folder, attempts, "of flags")
    assert metrics["reconstruction"]["count_images"] == 1
    assert f"{metrics['reconstruction']['psnr_images']:.2f} dB" in attempts["of flags"][1]
    assert record["evaluation"][0]["splits"] == ["validation_combination"]


def test_every_flag_sets_a_field_that_some_evaluator_has():
    """And every field that every evaluator shares has its flag."""
    source = (ROOT / "emu3_jax/evaluate/__main__.py").read_text()
    settings = source[source.index("SETTINGS = ") : source.index("DTYPE = ")]
    names = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', settings))
    needed = {"answers": {"benchmark": "pope"}, "drawings": {"benchmark": "geneval"}}
    entries = registry.resolved(
        registry.make(
            [dict(evaluator=name, **needed.get(name, {})) for name in registry.EVALUATORS]
        )
    )
    fields = {key for entry in entries for key in (*entry, *entry.get("sampling", {}))}
    assert len(names) > 12 and names <= fields
