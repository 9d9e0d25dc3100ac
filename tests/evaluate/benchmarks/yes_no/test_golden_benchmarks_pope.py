"""POPE against the official scorers."""

import pytest
from support import golden_benchmarks as golden

from emu3_jax.evaluate.benchmarks.yes_no.pope import POPE, read

QUESTIONS = read(golden.FOLDER / "pope")
ANSWERS = golden.answers("pope", QUESTIONS)
EXPECTED = golden.expected("pope")
HARNESSES = EXPECTED["other_harnesses"]


def scored(rule):
    return POPE.rules[rule](QUESTIONS, ANSWERS)


def test_golden_benchmarks_pope_official():
    golden.assert_figures(scored("official"), EXPECTED["figures"])
    golden.assert_scores(scored("official"), QUESTIONS, EXPECTED["per_item"])


@pytest.mark.parametrize("rule", ["lmms_eval", "vlmevalkit"])
def test_golden_benchmarks_pope_harnesses(rule):
    figures = {k.removesuffix(" (task pope)"): v for k, v in HARNESSES[rule]["figures"].items()}
    golden.assert_figures(scored(rule), figures)
    golden.assert_scores(scored(rule), QUESTIONS, HARNESSES[rule]["per_item"])
