"""VQAv2, GQA, TextVQA: files that are not as released, and the files that are handed in."""

import json
import shutil

import pytest
from support import golden_benchmarks as golden

from emu3_jax.evaluate.benchmarks.open_answers import gqa, textvqa, vqav2

QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
READERS = {
    "vqav2": (vqav2.read, QUESTIONS),
    "gqa": (gqa.read, gqa.QUESTIONS),
    "textvqa": (textvqa.read, textvqa.QUESTIONS),
}


@pytest.fixture
def data(tmp_path):
    """(name) → a copy of its golden folder."""
    return lambda name: shutil.copytree(golden.FOLDER / name, tmp_path / name)


def change(path, edit):
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("name", READERS)
def test_a_missing_image_is_refused(data, name):
    read, _ = READERS[name]
    folder = data(name)
    image = read(folder)[0].images[0]
    image.unlink()
    with pytest.raises(ValueError, match=rf"the image {image} does not exist"):
        read(folder)


@pytest.mark.parametrize("name", READERS)
def test_what_is_not_json_is_refused(data, name):
    read, file = READERS[name]
    folder = data(name)
    (folder / file).write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{file}: not JSON"):
        read(folder)


@pytest.mark.parametrize("name", READERS)
def test_a_missing_file_is_refused(data, name):
    read, file = READERS[name]
    folder = data(name)
    (folder / file).unlink()
    with pytest.raises(ValueError, match=rf"{file} does not exist"):
        read(folder)


def test_vqav2_refuses_a_duplicate(data):
    folder = data("vqav2")
    change(folder / QUESTIONS, lambda file: file["questions"].append(file["questions"][0]))
    with pytest.raises(ValueError, match=r"the id '\d+' occurs twice"):
        vqav2.read(folder)


def first_annotation(folder, **fields):
    change(folder / vqav2.ANNOTATIONS, lambda file: file["annotations"][0].update(fields))


def test_vqav2_refuses_annotations_of_other_questions(data):
    folder = data("vqav2")
    first_annotation(folder, question_id=1)
    with pytest.raises(ValueError, match=r"has no annotation of question"):
        vqav2.read(folder)


def test_vqav2_refuses_annotations_of_other_images(data):
    folder = data("vqav2")
    first_annotation(folder, image_id=1)
    with pytest.raises(ValueError, match=r"has no annotation of question \d+ about image"):
        vqav2.read(folder)


def test_vqav2_refuses_more_annotations(data):
    folder = data("vqav2")
    change(folder / QUESTIONS, lambda file: file["questions"].pop())
    with pytest.raises(ValueError, match=r"annotates question \d+, which .* does not hold"):
        vqav2.read(folder)


def test_vqav2_refuses_an_annotation_twice(data):
    folder = data("vqav2")
    change(folder / vqav2.ANNOTATIONS, lambda f: f["annotations"].append(f["annotations"][0]))
    with pytest.raises(ValueError, match=r"question \d+ is annotated twice"):
        vqav2.read(folder)


@pytest.mark.parametrize("answers", [[], [{"answer": "yes", "answer_id": 1}] * 2])
def test_vqav2_refuses_answers_that_do_not_differ(data, answers):
    folder = data("vqav2")
    first_annotation(folder, answers=answers)
    with pytest.raises(ValueError, match="expected answers whose answer_id differ"):
        vqav2.read(folder)


@pytest.fixture
def tests(data):
    """The golden questions as those of the test split, and all but the last as test-dev."""
    folder = data("vqav2")
    shutil.copy(folder / QUESTIONS, folder / QUESTIONS.replace("val2014", "test2015"))
    change(folder / QUESTIONS, lambda file: file["questions"].pop())
    (folder / QUESTIONS).rename(folder / QUESTIONS.replace("val2014", "test-dev2015"))
    images = folder / "test2015"
    (folder / "val2014").rename(images)
    for image in list(images.iterdir()):
        image.rename(images / image.name.replace("val2014", "test2015"))
    return folder


@pytest.mark.parametrize("split", ["test2015", "test-dev2015"])
def test_vqav2_of_a_test_split_is_handed_in(tests, split):
    questions = vqav2.read(tests, split)
    answers = ["The dog."] * len(questions)
    for rule in vqav2.VQAV2.rules.values():
        scored = rule(questions, answers)
        assert scored.figures == {}
        assert {score.score for score in scored.scores} == {None}
    ((name, content),) = vqav2.submission(questions, answers).items()
    assert name == f"v2_OpenEnded_mscoco_{split}_emu3_results.json"
    rows = json.loads(content)
    assert rows[0] == {"question_id": int(questions[0].id), "answer": "dog"}
    whole = vqav2.read(tests, "test2015")
    assert [row["question_id"] for row in rows] == [int(question.id) for question in whole]
    assert rows[-1]["answer"] == ("dog" if split == "test2015" else "")


def test_vqav2_test_dev_needs_the_test_split(tests):
    questions = vqav2.read(tests, "test-dev2015")
    path = tests / QUESTIONS.replace("val2014", "test2015")
    change(path, lambda file: file["questions"].pop(0))
    with pytest.raises(ValueError, match="does not hold the questions of test-dev2015"):
        vqav2.submission(questions, [""] * len(questions))
    path.unlink()
    with pytest.raises(ValueError, match=r"test2015_questions.json does not exist"):
        vqav2.read(tests, "test-dev2015")


def test_gqa_refuses_a_duplicate(data):
    folder = data("gqa")
    path = folder / gqa.QUESTIONS
    content = json.loads(path.read_text(encoding="utf-8"))
    number, row = next(iter(content.items()))
    path.write_text(f"{json.dumps(content)[:-1]}, {json.dumps({number: row})[1:]}")
    with pytest.raises(ValueError, match=rf"{gqa.QUESTIONS}: '{number}' occurs twice"):
        gqa.read(folder)


def test_gqa_refuses_other_fields(data):
    folder = data("gqa")
    change(folder / gqa.QUESTIONS, lambda file: next(iter(file.values())).update(isBalanced="yes"))
    with pytest.raises(ValueError, match=r"question \d+: isBalanced is 'yes', expected true or f"):
        gqa.read(folder)


def test_gqa_refuses_no_question(data):
    folder = data("gqa")
    change(folder / gqa.QUESTIONS, dict.clear)
    with pytest.raises(ValueError, match="holds no question"):
        gqa.read(folder)


def test_gqa_in_small_letters_of_another_length(data):
    """ "İ" in small letters is two characters: the official truth is left as it is, NumPy cuts."""
    folder = data("gqa")
    change(folder / gqa.QUESTIONS, lambda file: next(iter(file.values())).update(answer="İx"))
    questions = gqa.read(folder)[:1]
    scores = {name: rule(questions, ["İx"]).scores[0] for name, rule in gqa.GQA.rules.items()}
    assert (scores["official"].score, scores["official"].parsed) == (0.0, "i̇x")
    assert (scores["lmms_eval"].score, scores["lmms_eval"].parsed) == (1.0, "i̇")
    assert (scores["vlmevalkit"].score, scores["vlmevalkit"].parsed) == (1.0, "i̇x")


def test_gqa_predictions_of_the_official_script(data):
    questions = gqa.read(data("gqa"))
    ((name, content),) = gqa.submission(questions, ["Red.."] * len(questions)).items()
    assert name == "testdev_balanced_predictions.json"
    assert json.loads(content)[0] == {"questionId": questions[0].id, "prediction": "red"}


@pytest.mark.parametrize("answers", [["a"] * 9, ["a"] * 9 + [1]])
def test_textvqa_refuses_other_than_ten_answers(data, answers):
    folder = data("textvqa")
    change(folder / textvqa.QUESTIONS, lambda file: file["data"][1].update(answers=answers))
    with pytest.raises(ValueError, match=r"val.json, entry 2: expected 10 answers"):
        textvqa.read(folder)


def test_textvqa_refuses_a_duplicate(data):
    folder = data("textvqa")
    change(folder / textvqa.QUESTIONS, lambda file: file["data"].append(file["data"][0]))
    with pytest.raises(ValueError, match=r"the id '\d+' occurs twice"):
        textvqa.read(folder)


def test_textvqa_with_and_without_ocr(data):
    folder = data("textvqa")
    change(folder / textvqa.QUESTIONS, lambda file: file["data"][1].update(ocr_tokens=[]))
    plain, hinted = textvqa.read(folder), textvqa.read(folder, textvqa.OCR)
    tokens = json.loads((folder / textvqa.QUESTIONS).read_text())["data"][0]["ocr_tokens"]
    assert hinted[0].text == f"{plain[0].text}\nReference OCR token: {', '.join(tokens)}"
    assert hinted[1].text == f"{plain[1].text}\nReference OCR token: "


def test_textvqa_refuses_missing_ocr(data):
    folder = data("textvqa")
    change(folder / textvqa.QUESTIONS, lambda file: file["data"][0].pop("ocr_tokens"))
    textvqa.read(folder)
    with pytest.raises(ValueError, match="entry 1: the field 'ocr_tokens' is missing"):
        textvqa.read(folder, textvqa.OCR)


def test_textvqa_asked_twice_is_scored_against_the_last(data):
    folder = data("textvqa")

    def edit(file):
        first = file["data"][0] | {"question_id": 1, "answers": ["blue"] * 10}
        file["data"].append(first | {"question": first["question"].upper()})

    change(folder / textvqa.QUESTIONS, edit)
    questions = textvqa.read(folder)
    official = textvqa.TEXTVQA.rules["official"](questions, ["blue"] * len(questions))
    assert official.scores[0].score == official.scores[-1].score == 1.0
    assert official.notes[0].startswith("1 questions are asked twice")
    assert textvqa.TEXTVQA.rules["lmms_eval"](questions, ["blue"] * 21).scores[0].score == 0.0
