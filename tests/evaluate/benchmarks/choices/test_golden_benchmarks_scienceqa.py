"""ScienceQA against LLaVA's script and the harnesses."""

import pytest
from support import golden_benchmarks as golden

from emu3_jax.evaluate.benchmarks.choices.scienceqa import ALL, SCIENCEQA, read

FOLDER = "scienceqa_img"
QUESTIONS = read(golden.FOLDER / FOLDER, ALL)
ANSWERS = golden.answers(FOLDER, QUESTIONS)
EXPECTED = golden.expected(FOLDER)


def test_golden_benchmarks_scienceqa_official():
    scored = SCIENCEQA.rules["official"](QUESTIONS, ANSWERS)
    golden.assert_figures(scored, EXPECTED["figures"])
    golden.assert_scores(scored, QUESTIONS, EXPECTED["per_item"])


@pytest.mark.parametrize("rule", ["lmms_eval", "vlmevalkit"])
def test_golden_benchmarks_scienceqa_harnesses(rule):
    scored = SCIENCEQA.rules[rule](QUESTIONS, ANSWERS)
    harness = EXPECTED["other_harnesses"][rule]
    golden.assert_figures(scored, harness["figures"])
    golden.assert_scores(scored, QUESTIONS, harness["per_item"])


def test_golden_benchmarks_scienceqa_with_image():
    """The usual version asks those with an image alone, with the same accuracy."""
    questions = read(golden.FOLDER / FOLDER)
    seen = {str(item["id"]) for item in EXPECTED["per_item"] if item["has_image"]}
    assert {question.id for question in questions} == seen
    answers = golden.answers(FOLDER, questions, others=True)
    figures = SCIENCEQA.rules["official"](questions, answers).figures
    wanted = {name: EXPECTED["figures"][name] for name in ("img_accuracy", "n_img")}
    assert figures == pytest.approx(wanted)
