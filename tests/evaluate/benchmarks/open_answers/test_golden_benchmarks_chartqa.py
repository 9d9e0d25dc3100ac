"""ChartQA against pix2struct's relaxed correctness, and the harnesses."""

import pytest
from support import golden_benchmarks as golden

from emu3_jax.evaluate.benchmarks.open_answers.chartqa import CHARTQA, read

QUESTIONS = read(golden.FOLDER / "chartqa")
ANSWERS = golden.answers("chartqa", QUESTIONS)
EXPECTED = golden.expected("chartqa")


def test_golden_benchmarks_chartqa_official():
    scored = CHARTQA.rules["official"](QUESTIONS, ANSWERS)
    golden.assert_figures(scored, EXPECTED["figures"])
    golden.assert_scores(scored, QUESTIONS, EXPECTED["per_item"])


@pytest.mark.parametrize("rule", ["lmms_eval", "vlmevalkit"])
def test_golden_benchmarks_chartqa_harnesses(rule):
    expected = EXPECTED["other_harnesses"][rule]
    scored = CHARTQA.rules[rule](QUESTIONS, ANSWERS)
    golden.assert_figures(scored, expected["figures"])
    golden.assert_scores(scored, QUESTIONS, expected["per_item"])
