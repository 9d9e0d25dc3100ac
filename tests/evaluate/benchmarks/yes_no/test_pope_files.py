"""POPE: files that are not as released; and how VLMEvalKit finds words."""

import json
import shutil

import pytest
from support import golden_benchmarks as golden

from emu3_jax.evaluate.benchmarks.benchmark import Question
from emu3_jax.evaluate.benchmarks.yes_no.pope import POPE, SPLITS, read
from emu3_jax.evaluate.benchmarks.yes_no.words import whole_word


@pytest.fixture
def data(tmp_path):
    return shutil.copytree(golden.FOLDER / "pope", tmp_path / "pope")


def rows(data):
    path = data / "coco_pope_popular.json"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(data, rows):
    text = "\n".join(json.dumps(row) for row in rows)
    (data / "coco_pope_popular.json").write_text(text, encoding="utf-8")


def test_pope_refuses_a_duplicate(data):
    write(data, [*rows(data), rows(data)[0]])
    with pytest.raises(ValueError, match=r"the id 'popular/\d+' occurs twice"):
        read(data)


def test_pope_refuses_a_missing_image(data):
    image = data / "val2014" / rows(data)[0]["image"]
    image.unlink()
    with pytest.raises(ValueError, match=rf"json:\d+: the image {image} does not exist"):
        read(data)


def test_pope_refuses_other_labels(data):
    write(data, [rows(data)[0] | {"label": "Yes"}])
    with pytest.raises(ValueError, match=r"popular.json:1: label is 'Yes', expected 'yes' or 'no'"):
        read(data)


def test_pope_refuses_a_missing_field(data):
    write(data, [{"question_id": 1}])
    with pytest.raises(ValueError, match=r"popular.json:1: the field 'image' is missing"):
        read(data)


def test_pope_refuses_what_is_not_json(data):
    (data / "coco_pope_popular.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"popular.json:1: not JSON"):
        read(data)


def test_pope_refuses_a_missing_split(data):
    (data / "coco_pope_popular.json").unlink()
    with pytest.raises(ValueError, match=r"coco_pope_popular.json does not exist"):
        read(data)


def test_pope_mean_is_of_three_splits(data):
    questions = read(data, SPLITS[0])
    figures = POPE.rules["official"](questions, [q.truth for q in questions]).figures
    assert figures["random/f1"] == 1.0
    assert "mean_of_3/f1" not in figures


def test_pope_notes_the_first_release():
    group = {"split": "random"}
    questions = [Question(str(at), "", (), "yes", "yes_no", group=group) for at in range(2910)]
    official = POPE.rules["official"]
    assert "first release" in official(questions, ["yes"] * 2910).notes[0]
    assert official(questions[1:], ["yes"] * 2909).notes == ()


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ("Yes.", "yes"),
        ("**No**", "unknown"),  # an asterisk is none of the marks
        ("no: it is not", "unknown"),  # nor is a colon
        ("(no)", "no"),
        ("yes/no", "unknown"),
        ("Yes.No", "unknown"),  # the stop goes, and one word is left
        ("no\u00a0dog", "no"),
        ("It is 1,000-no", "unknown"),  # a comma in a number: marks go without a blank
        ("yes yes", "yes"),
        ("", "unknown"),
    ],
)
def test_whole_word(answer, word):
    assert whole_word(answer) == word
