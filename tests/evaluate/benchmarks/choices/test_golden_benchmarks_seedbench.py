"""SEED-Bench, image split, against LLaVA's script and the harnesses."""

import pytest
from support import golden_benchmarks as golden

from emu3_jax.evaluate.benchmarks.choices.seedbench import SEEDBENCH, read

FOLDER = "seedbench_img"
QUESTIONS = read(golden.FOLDER / FOLDER)
# It has answers to questions about clips too.
ANSWERS = golden.answers(FOLDER, QUESTIONS, others=True)
EXPECTED = golden.expected(FOLDER)


def test_golden_benchmarks_seedbench_official():
    scored = SEEDBENCH.rules["official"](QUESTIONS, ANSWERS)
    figures = EXPECTED["figures"]
    golden.assert_figures(scored, {"image_accuracy": figures["image_accuracy"]})
    assert len(QUESTIONS) == figures["n_image"]
    golden.assert_scores(scored, QUESTIONS, EXPECTED["per_item"])
    types = {question.group["category"] for question in QUESTIONS}
    printed = {name: value for name, value in figures["printed"].items() if name in types}
    assert printed == {name: round(scored.figures[name], 2) for name in types}


@pytest.mark.parametrize("rule", ["lmms_eval", "vlmevalkit"])
def test_golden_benchmarks_seedbench_harnesses(rule):
    scored = SEEDBENCH.rules[rule](QUESTIONS, ANSWERS)
    harness = EXPECTED["other_harnesses"][rule]
    golden.assert_figures(scored, harness["figures"])
    golden.assert_scores(scored, QUESTIONS, harness["per_item"])
