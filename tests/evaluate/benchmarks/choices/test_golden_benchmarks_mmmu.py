"""MMMU against the authors' scripts and the harnesses."""

import json
import re

from support import golden_benchmarks as golden

from emu3_jax.evaluate.benchmarks.choices import mmmu_answers
from emu3_jax.evaluate.benchmarks.choices.mmmu import FIRST_IMAGE, MMMU, read

FOLDER = "mmmu_val"
QUESTIONS = read(golden.FOLDER / FOLDER)
ANSWERS = golden.answers(FOLDER, QUESTIONS)
EXPECTED = golden.expected(FOLDER)
HARNESSES = EXPECTED["other_harnesses"]


def test_golden_benchmarks_mmmu_official():
    scored = MMMU.rules["official"](QUESTIONS, ANSWERS)
    figures = dict(EXPECTED["figures"])
    printed = figures.pop("eval_only_printed")
    golden.assert_figures(scored, figures)
    golden.assert_scores(scored, QUESTIONS, EXPECTED["per_item"])
    disciplines = {
        name.removeprefix("Overall-"): value
        for name, value in printed.items()
        if name.startswith("Overall-")
    }
    assert len(disciplines) == 6
    for name, value in disciplines.items():
        assert scored.figures[f"discipline/{name}/num_example"] == value["num"]
        assert round(scored.figures[f"discipline/{name}/acc"], 3) == value["acc"]


def test_golden_benchmarks_mmmu_guesses_do_not_depend_on_the_order():
    """One stream of guesses over the subjects in the authors' order, wherever questions stand."""
    by_kind = sorted(range(len(QUESTIONS)), key=lambda i: QUESTIONS[i].group["subject"] == "Math")
    order = sorted(by_kind, key=lambda i: QUESTIONS[i].group["subject"], reverse=True)
    questions = [QUESTIONS[i] for i in order]
    scored = MMMU.rules["official"](questions, [ANSWERS[i] for i in order])
    golden.assert_scores(scored, questions, EXPECTED["per_item"])


def test_golden_benchmarks_mmmu_lmms_eval():
    scored = MMMU.rules["lmms_eval"](QUESTIONS, ANSWERS)
    golden.assert_figures(
        scored, {"acc": HARNESSES["lmms_eval"]["figures"]["acc over decided items"]}
    )
    golden.assert_scores(scored, QUESTIONS, HARNESSES["lmms_eval"]["per_item"])


def test_golden_benchmarks_mmmu_vlmevalkit():
    scored = MMMU.rules["vlmevalkit"](QUESTIONS, ANSWERS)
    golden.assert_figures(scored, HARNESSES["vlmevalkit"]["figures"])
    golden.assert_scores(scored, QUESTIONS, HARNESSES["vlmevalkit"]["per_item"])


def test_golden_benchmarks_mmmu_truths_are_those_of_the_released_answers():
    """The list in a parquet cell and the list of answer_dict_val.json are the same."""
    path = golden.FOLDER / FOLDER / "answer_dict_val.json"
    released = json.loads(path.read_text(encoding="utf-8"))
    for question in QUESTIONS:
        truth = released[question.id]["ground_truth"]
        wanted = truth if isinstance(truth, list) else [truth]
        assert mmmu_answers.truths(question.truth) == wanted


def test_golden_benchmarks_mmmu_first_image():
    questions = read(golden.FOLDER / FOLDER, FIRST_IMAGE)
    for one, all_ in zip(questions, QUESTIONS, strict=True):
        assert one.images == all_.images[:1]
        for found, text in ((one.text, all_.text), (one.options, all_.options)):
            assert str(found) == re.sub(r"<image ([2-7])>", r"image \1", str(text))
