"""MM-Vet: files of questions and of judgements that are refused, and several runs."""

import json
import shutil

import numpy as np
import pytest
from support.paths import GOLDEN

from emu3_jax.evaluate.benchmarks.open_answers.mmvet import MMVET, read, read_grades, rule

FOLDER = GOLDEN / "benchmarks" / "mmvet"
QUESTIONS = read(FOLDER)
IDS = [question.id for question in QUESTIONS]


def grade_file(path, scores, **more):
    """A grade file of the authors' evaluator: id → scores."""
    path.write_text(json.dumps({key: {"score": value} | more for key, value in scores.items()}))
    return path


def refused(path):
    with pytest.raises(ValueError) as error:
        read_grades(path, QUESTIONS)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def grades(tmp_path):
    return tmp_path / "grades.json"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(FOLDER, tmp_path / "mmvet")


def test_judgements_of_fewer_items(grades):
    grade_file(grades, dict.fromkeys(IDS[:-1], [1.0]))
    assert refused(grades) == (
        f"{grades}: {len(IDS) - 1} of {len(IDS)} questions are judged; {IDS[-1]!r} is not"
    )


def test_judgements_of_other_items(grades):
    grade_file(grades, dict.fromkeys([*IDS, "v2_0"], [1.0]))
    assert refused(grades) == f"{grades}: 'v2_0' is not a question of this benchmark"


def test_answers_are_no_judgements(grades):
    files = MMVET.judging.write(QUESTIONS, ["text"] * len(IDS))
    grades.write_bytes(*files.values())
    assert refused(grades) == f"{grades}, {IDS[0]}: expected an object, found str"


@pytest.mark.parametrize("scores", [[], [1.5], [True], ["0.5"], [float("nan")]])
def test_scores_that_are_none(grades, scores):
    grade_file(grades, dict.fromkeys(IDS, [1.0]) | {IDS[1]: scores})
    message = refused(grades)
    assert message.startswith(f"{grades}, {IDS[1]}: the scores are ")
    assert message.endswith("expected numbers from 0 to 1")


def test_uneven_runs(grades):
    grade_file(grades, dict.fromkeys(IDS, [1.0, 0.5]) | {IDS[3]: [1.0]})
    assert refused(grades) == (
        f"{grades}: {IDS[3]!r} is judged 1 times and {IDS[0]!r} 2 times; "
        "expected as many runs of each"
    )


def test_duplicate_judgement(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_text("".join(json.dumps({"id": key, "scores": [1]}) + "\n" for key in IDS[:1] * 2))
    assert refused(path) == f"{path}:2: the id {IDS[0]!r} occurs twice; ids must differ"


def test_duplicate_question(folder):
    """The id is a key of an object, of which json keeps the last."""
    path = folder / "mm-vet.json"
    path.write_text(path.read_text().replace('"v1_1"', '"v1_0"', 1))
    with pytest.raises(ValueError, match="'v1_0' occurs twice"):
        read(folder)


def test_missing_image(folder):
    (folder / "images" / "v1_2.png").unlink()
    with pytest.raises(ValueError, match=r"mm-vet.json, v1_2: the image .*v1_2.png does not exist"):
        read(folder)


def test_unknown_capability(folder):
    path = folder / "mm-vet.json"
    path.write_text(path.read_text().replace('"math"', '"maths"', 1))
    with pytest.raises(ValueError, match="v1_0: capability is 'maths', expected one of"):
        read(folder)


def test_several_runs(grades):
    """Groups are means of all runs; the deviation is that of the totals of the runs."""
    scores = np.random.default_rng(0).integers(0, 11, (len(IDS), 5)) / 10
    grade_file(grades, dict(zip(IDS, scores.tolist(), strict=True)), model=["gpt-4-0613"] * 5)
    scored = rule(QUESTIONS, [""] * len(IDS), read_grades(grades, QUESTIONS))
    runs = 100 * scores.mean(axis=0)
    ocr = ["ocr" in question.group["capability"] for question in QUESTIONS]
    assert [scored.figures[f"run/{i}"] for i in range(1, 6)] == pytest.approx(list(runs))
    assert scored.figures["total"] == pytest.approx(runs.mean())
    assert scored.figures["std"] == pytest.approx(runs.std())
    assert scored.figures["by_capability/ocr"] == pytest.approx(100 * scores[ocr].mean())
    assert scored.notes[0] == "judged by gpt-4-0613; figures of papers are by gpt-4-0613"
