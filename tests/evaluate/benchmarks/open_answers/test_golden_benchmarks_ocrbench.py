"""OCRBench against the authors' script and the harnesses."""

import dataclasses
import itertools

import pytest
from support import golden_benchmarks as golden

from emu3_jax.evaluate.benchmarks.open_answers.ocrbench import OCRBENCH, RELEASED, read

# The golden files have the id alone; it is unique in them, but not in the released file.
QUESTIONS = [
    dataclasses.replace(question, id=question.id.rpartition("/")[2])
    for question in read(golden.FOLDER / "ocrbench")
]
ANSWERS = golden.answers("ocrbench", QUESTIONS)
EXPECTED = golden.expected("ocrbench")


def test_golden_benchmarks_ocrbench_official():
    figures = dict(EXPECTED["figures"])
    repeated = figures.pop("official_on_1000_rows_made_by_repetition")
    scored = OCRBENCH.rules["official"](QUESTIONS, ANSWERS)
    golden.assert_figures(scored, figures)
    golden.assert_scores(scored, QUESTIONS, EXPECTED["per_item"])
    rows = itertools.islice(itertools.cycle(zip(QUESTIONS, ANSWERS, strict=True)), RELEASED)
    scored = OCRBENCH.rules["official"](*zip(*rows, strict=True))
    golden.assert_figures(scored, {"final_score": repeated})


@pytest.mark.parametrize("rule", ["lmms_eval", "vlmevalkit"])
def test_golden_benchmarks_ocrbench_harnesses(rule):
    expected = EXPECTED["other_harnesses"][rule]
    scored = OCRBENCH.rules[rule](QUESTIONS, ANSWERS)
    golden.assert_figures(scored, expected["figures"])
    golden.assert_scores(scored, QUESTIONS, expected["per_item"])
