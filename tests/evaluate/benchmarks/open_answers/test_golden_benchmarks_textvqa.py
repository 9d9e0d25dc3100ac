"""TextVQA against the official scorers."""

import pytest
from support import golden_benchmarks as golden

from emu3_jax.evaluate.benchmarks.open_answers.textvqa import OCR, TEXTVQA, read

EXPECTED = golden.expected("textvqa")
HARNESSES = EXPECTED["other_harnesses"]


@pytest.fixture(params=["", OCR], scope="module")
def questions(request):
    return read(golden.FOLDER / "textvqa", request.param)


def scored(rule, questions):
    return TEXTVQA.rules[rule](questions, golden.answers("textvqa", questions))


def test_golden_benchmarks_textvqa_official(questions):
    result = scored("official", questions)
    golden.assert_figures(result, {"accuracy": EXPECTED["figures"]["accuracy"]})
    golden.assert_scores(result, questions, EXPECTED["per_item"])


@pytest.mark.parametrize("rule", ["lmms_eval", "vlmevalkit"])
def test_golden_benchmarks_textvqa_harnesses(rule, questions):
    result = scored(rule, questions)
    golden.assert_figures(result, HARNESSES[rule]["figures"])
    golden.assert_scores(result, questions, HARNESSES[rule]["per_item"])
