"""Released files of DocVQA, InfographicVQA, ChartQA and OCRBench: what is read, what is refused."""

import json
import shutil

import pytest
from support.paths import GOLDEN

from emu3_jax.evaluate.benchmarks.benchmark import Question
from emu3_jax.evaluate.benchmarks.open_answers import ocrbench
from emu3_jax.evaluate.benchmarks.registry import QUESTIONS

# Benchmark → (file of questions, field that names the image, field of the answers).
FILES = {
    "docvqa": ("spdocvqa_qas/val_v1.0_withQT.json", "image", "answers"),
    "infovqa": (
        "infographicsvqa_qas/infographicsVQA_val_v1.0_withQT.json",
        "image_local_name",
        "answers",
    ),
    "chartqa": ("test/test_human.json", "imgname", "label"),
    "ocrbench": ("OCRBench/OCRBench.json", "image_path", "answers"),
}


@pytest.fixture(params=FILES)
def name(request):
    return request.param


@pytest.fixture
def folder(name, tmp_path):
    return shutil.copytree(GOLDEN / "benchmarks" / name, tmp_path / name)


def change(folder, name, edit):
    """Changes the rows of the file of questions."""
    path = folder / FILES[name][0]
    content = json.loads(path.read_text())
    edit(content["data"] if isinstance(content, dict) else content)
    path.write_text(json.dumps(content))
    return path


def refused(folder, name, version=""):
    with pytest.raises(ValueError) as error:
        QUESTIONS[name].read(folder, version)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_missing_image(folder, name):
    image = FILES[name][1]
    path = change(folder, name, lambda rows: rows[1].update({image: "absent.png"}))
    message = refused(folder, name)
    assert message.startswith(f"{path}, entry 2: the image ") and message.endswith("does not exist")
    assert "absent.png" in message


def test_missing_field(folder, name):
    field = FILES[name][2]
    path = change(folder, name, lambda rows: rows[2].pop(field))
    assert refused(folder, name).startswith(f"{path}, entry 3: the field {field!r} is missing")


def test_file_of_another_benchmark(folder, name, tmp_path):
    other = "pope" if name != "pope" else "docvqa"
    assert refused(GOLDEN / "benchmarks" / other, name).endswith("does not exist")
    path = folder / FILES[name][0]
    path.write_text(json.dumps({"v1_0": "text"}))
    found = "the field 'data' is missing" if "vqa" in name else "expected a list"
    assert refused(folder, name).startswith(f"{path}: {found}")
    path.write_text(json.dumps({"data": [1]}) if "vqa" in name else "[1]")
    assert refused(folder, name) == f"{path}, entry 1: expected an object, found int"


@pytest.mark.parametrize("name", ["docvqa", "infovqa", "ocrbench"], indirect=True)
def test_duplicate_id(folder, name):
    path = change(folder, name, lambda rows: rows.append(rows[0]))
    assert refused(folder, name).startswith(f"{path}: the id ")
    assert refused(folder, name).endswith("occurs twice; ids must differ")


@pytest.mark.parametrize("name", ["docvqa", "infovqa", "ocrbench"], indirect=True)
@pytest.mark.parametrize("answers", [[], [5]])
def test_no_answer(folder, name, answers):
    path = change(folder, name, lambda rows: rows[0].update(answers=answers))
    assert refused(folder, name) == (
        f"{path}, entry 1: answers is {answers!r}, expected one text or more"
    )


@pytest.mark.parametrize("name", ["docvqa", "infovqa"], indirect=True)
def test_split_without_answers(folder, name):
    """No score and no figure; the answers go to the server."""

    def hide(rows):
        for row in rows:
            del row["answers"]

    path = change(folder, name, hide)
    path.rename(path.with_name(path.name.replace("val_v1.0_withQT", "test_v1.0")))
    benchmark = QUESTIONS[name]
    questions = benchmark.read(folder, "test")
    answers = ["an answer"] * len(questions)
    for rule in benchmark.rules.values():
        scored = rule(questions, answers)
        assert {score.score for score in scored.scores} == {None}
        assert not scored.figures and len(scored.notes) == 1
    (content,) = benchmark.submission(questions, answers).values()
    assert [row["questionId"] for row in json.loads(content)] == [int(q.id) for q in questions]
    assert refused(folder, name).endswith("does not exist")


@pytest.mark.parametrize("name", ["chartqa"], indirect=True)
def test_halves(folder, name):
    benchmark = QUESTIONS[name]
    for half in benchmark.versions:
        questions = benchmark.read(folder, half)
        assert {question.group["half"] for question in questions} == {half}
        scored = benchmark.rules["official"](questions, [q.truth for q in questions])
        assert scored.figures == {half: 100.0, "pooled": 100.0}


@pytest.mark.parametrize("name", ["ocrbench"], indirect=True)
def test_ids_of_data_sets(folder, name):
    """In the released file an id occurs in several data sets."""

    def same_id(rows):
        for row in rows[:2]:
            row["id"] = 7

    change(folder, name, same_id)
    questions = QUESTIONS[name].read(folder, "")
    assert [question.id for question in questions[:2]] == ["IIIT5K/7", "svt/7"]
    path = change(folder, name, lambda rows: rows[0].update(type="Barcodes"))
    assert refused(folder, name).startswith(f"{path}, entry 1: type is 'Barcodes', expected one of")


def test_full_width_signs():
    group = {"type": ocrbench.OTHERS[0], "dataset": "ReCTS"}
    question = Question("ReCTS/1", "?", (), ["ＡＢ　１"], "short", group=group)
    scores = {
        rule: f([question], ["ab 1"]).scores[0].score for rule, f in ocrbench.OCRBENCH.rules.items()
    }
    assert scores == {"official": 0.0, "lmms_eval": 1.0, "vlmevalkit": 0.0}


@pytest.mark.parametrize(
    "answer, truth, score, m4c",
    [
        ("abx   ", "abc", 1 - 1 / 6, 1 - 1 / 3),  # the raw length counts
        ("a", "ß", 0.5, 0.0),  # the length is that of "SS"
        ("new  york", "new york", 1.0, 1 - 1 / 9),  # blanks are collapsed
        ("abxy", "abcd", 0.5, 0.5),
        ("axyz", "abcd", 0.0, 0.0),
        ("", "", 1.0, 1.0),
    ],
)
def test_likeness(answer, truth, score, m4c):
    question = Question("1", "?", (), [truth, "nothing like it"], "short")
    scores = {
        rule: f([question], [answer]).scores[0].score
        for rule, f in QUESTIONS["docvqa"].rules.items()
    }
    assert scores == pytest.approx(
        {"official": score, "lmms_eval": score, "vlmevalkit": score, "m4c": m4c}
    )
