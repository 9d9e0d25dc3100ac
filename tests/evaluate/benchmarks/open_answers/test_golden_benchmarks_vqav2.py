"""VQAv2 against the official scorers."""

import pytest
from support import golden_benchmarks as golden

from emu3_jax.evaluate.benchmarks.open_answers.vqav2 import VQAV2, read

QUESTIONS = read(golden.FOLDER / "vqav2")
ANSWERS = golden.answers("vqav2", QUESTIONS)
EXPECTED = golden.expected("vqav2")
HARNESSES = {
    "llava": "llava_normalise_then_official",
    "lmms_eval": "lmms_eval",
    "vlmevalkit": "vlmevalkit",
}


def scored(rule):
    return VQAV2.rules[rule](QUESTIONS, ANSWERS)


def test_golden_benchmarks_vqav2_official():
    golden.assert_figures(scored("official"), EXPECTED["figures"])
    golden.assert_scores(scored("official"), QUESTIONS, EXPECTED["per_item"])


@pytest.mark.parametrize("rule", HARNESSES)
def test_golden_benchmarks_vqav2_harnesses(rule):
    expected = EXPECTED["other_harnesses"][HARNESSES[rule]]
    golden.assert_figures(scored(rule), expected["figures"])
    golden.assert_scores(scored(rule), QUESTIONS, expected["per_item"])
