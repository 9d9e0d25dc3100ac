"""GQA against the official scorers."""

import pytest
from support import golden_benchmarks as golden

from emu3_jax.evaluate.benchmarks.open_answers.gqa import GQA, read

QUESTIONS = read(golden.FOLDER / "gqa")
ANSWERS = golden.answers("gqa", QUESTIONS)
EXPECTED = golden.expected("gqa")
HARNESSES = EXPECTED["other_harnesses"]


def scored(rule):
    return GQA.rules[rule](QUESTIONS, ANSWERS)


def test_golden_benchmarks_gqa_official():
    figures = {name: EXPECTED["figures"][name] for name in ("accuracy", "binary", "open")}
    golden.assert_figures(scored("official"), figures)
    golden.assert_scores(scored("official"), QUESTIONS, EXPECTED["per_item"])


@pytest.mark.parametrize("rule", ["lmms_eval", "vlmevalkit"])
def test_golden_benchmarks_gqa_harnesses(rule):
    golden.assert_figures(scored(rule), HARNESSES[rule]["figures"])
    golden.assert_scores(scored(rule), QUESTIONS, HARNESSES[rule]["per_item"])


@pytest.mark.parametrize("rule", GQA.rules)
def test_golden_benchmarks_gqa_scores_balanced_questions_alone(rule):
    counted = [score for score in scored(rule).scores if score.score is not None]
    assert len(counted) == EXPECTED["figures"]["n_scored"] <= len(QUESTIONS)
