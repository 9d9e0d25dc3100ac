"""The shipped model in the real lmms-eval, started by its own command.

The first run installs it (`harness_environments`): bash launch/test.sh --slow FILE.
"""

import json
import pathlib
import subprocess
import sys

import harness_environments
import made_up_questions
import numpy as np
import pytest
from paths import ROOT

from emu3_jax.evaluate.harnesses.answering import Answerer
from emu3_jax.generate import modalities
from emu3_jax.generate.decoding.sampling import Sampling

pytestmark = pytest.mark.slow

HARNESS = "lmms-eval==0.7.3"
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_visual: !function made_up.visuals
doc_to_text: question
{rest}
"""
ANSWERS = """
doc_to_target: "no answer is this one"
generation_kwargs: {max_new_tokens: 12, temperature: 0, do_sample: false, until: ["r"]}
process_results: !function made_up.scores
metric_list: [{metric: length, aggregation: mean, higher_is_better: true}]
"""
OPTIONS = """
doc_to_choice: options
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
FUNCTIONS = """
from PIL import Image


def visuals(document):
    return [Image.open(document["image"])]


def scores(document, answers):
    return {"length": len(answers[0])}
"""


@pytest.fixture(scope="module")
def harness():
    return harness_environments.python("lmms_eval", HARNESS)


@pytest.fixture(scope="module")
def answerer(first_device):
    return Answerer.load("nano", "nano", mesh=first_device)


@pytest.fixture(scope="module")
def samples(harness, tmp_path_factory):
    """The rows, and what the harness wrote about each: task → lines, and task → its results."""
    folder = tmp_path_factory.mktemp("lmms_eval")
    rows = made_up_questions.write(folder)
    (folder / "made_up.py").write_text(FUNCTIONS)
    for name, kind, rest in (
        ("answers", "generate_until", ANSWERS),
        ("options", "multiple_choice", OPTIONS),
    ):
        text = TASK.format(name=name, kind=kind, rest=rest, data=folder / "questions.jsonl")
        (folder / f"{name}.yaml").write_text(text)
    # The entry point, as an installed package has it.
    subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", f"--egg-base={folder}"],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    said = harness_environments.run(
        harness, folder, [folder],
        "-m", "lmms_eval", "--model", "emu3_jax",
        "--model_args", "pretrained=nano,vision_tokenizer=nano",
        "--tasks", "answers,options", "--include_path", str(folder), "--batch_size", "3",
        "--log_samples", "--output_path", str(folder / "out"),
    )  # fmt: skip
    written = list((folder / "out").rglob("*_results.json"))
    assert written, said[-5000:]  # the harness ends with 0 also after an error
    found = {}
    for name in ("answers", "options"):
        (lines,) = (folder / "out").rglob(f"*_samples_{name}.jsonl")
        found[name] = [json.loads(line) for line in lines.read_text().splitlines()]
    return rows, found, json.loads(written[0].read_text())["results"]


def test_answers_are_those_of_our_own_path(samples, answerer):
    rows, found, _ = samples
    options = modalities.Options(Sampling(temperature=0.0), max_new=12)
    for row, sample in zip(rows, found["answers"], strict=True):
        asked = [pathlib.Path(row["image"]), row["question"]]
        (answer,) = answerer.answers([asked], options)
        assert sample["filtered_resps"] == answer.split("r")[0].strip()
    assert len({sample["filtered_resps"] for sample in found["answers"]}) > 1


def test_the_likeliest_option_is_taken(samples, answerer):
    rows, found, results = samples
    right = []
    for row, sample in zip(rows, found["options"], strict=True):
        asked = [pathlib.Path(row["image"]), row["question"]]
        ours = answerer.likelihoods([(asked, " " + option) for option in row["options"]])
        log_p = [one.log_probability for one in ours]
        np.testing.assert_allclose(
            [-float(p[0]) for p in sample["filtered_resps"]], log_p, rtol=1e-4
        )
        assert sample["acc"] == (np.argmax(log_p) == row["answer"])
        right.append(sample["acc"])
    assert results["options"]["acc,none"] == pytest.approx(np.mean(right))


PARTS = """
from PIL import Image
from emu3_jax.evaluate.harnesses.lmms_eval_model import cut, generation, parts

image = Image.new("RGB", (2, 2))
assert parts("What?", [image], "here") == [image, "What?"]
assert parts("Is <image> like <image>?", [image, image], "") == ["Is ", image, " like ", image, "?"]
assert parts("Is <image> red?", [image, image], "") == [image, image, "Is <image> red?"]
assert parts("What?", [], "") == ["What?"]
options, until = generation({"until": "x", "temperature": 0.5, "top_p": None, "num_beams": 1})
assert (options.sampling.temperature, options.sampling.top_p, options.max_new) == (0.5, 1.0, 1024)
assert until == ("x",)
options, _ = generation({"do_sample": False, "temperature": 0.5, "max_new_tokens": 7})
assert options.sampling.greedy and options.max_new == 7
assert cut("a cat. A dog", ["\\n", " A", "."]) == "a cat"
for bad, call in (
    ("task, 3: expected images, found str", lambda: parts("", ["film.mp4"], "task, 3")),
    ("num_beams is 5, expected 1", lambda: generation({"num_beams": 5})),
):
    try:
        call()
    except ValueError as error:
        assert str(error).startswith(bad), error
    else:
        raise AssertionError(bad)
"""


def test_questions_and_settings_of_tasks(harness, tmp_path):
    harness_environments.run(harness, tmp_path, [], "-c", PARTS)
