"""RealWorldQA in both forms against lmms-eval and VLMEvalKit."""

import pytest
from support import golden_benchmarks as golden

from emu3_jax.evaluate.benchmarks.choices.realworldqa import REALWORLDQA, TABLE, read

QUESTIONS = read(golden.FOLDER / "realworldqa")
ANSWERS = golden.answers("realworldqa", QUESTIONS)
TABLE_QUESTIONS = read(golden.FOLDER / "realworldqa" / TABLE)
# The table has those with options alone.
TABLE_ANSWERS = golden.answers("realworldqa", TABLE_QUESTIONS, others=True)
EXPECTED = golden.expected("realworldqa")
VLMEVALKIT = EXPECTED["other_harnesses"]["vlmevalkit"]


def test_golden_benchmarks_realworldqa_lmms_eval():
    scored = REALWORLDQA.rules["lmms_eval"](QUESTIONS, ANSWERS)
    figures = {
        name.removeprefix("lmms_eval_"): value
        for name, value in EXPECTED["figures"].items()
        if name.startswith("lmms_eval_")
    }
    golden.assert_figures(scored, figures)
    golden.assert_scores(scored, QUESTIONS, EXPECTED["per_item"])


def test_golden_benchmarks_realworldqa_lmms_eval_of_the_table():
    scored = REALWORLDQA.rules["lmms_eval"](TABLE_QUESTIONS, TABLE_ANSWERS)
    items = [item for item in EXPECTED["per_item"] if item["kind"] == "mcq"]
    golden.assert_scores(scored, TABLE_QUESTIONS, items)


@pytest.mark.parametrize(
    ("questions", "answers"), [(QUESTIONS, ANSWERS), (TABLE_QUESTIONS, TABLE_ANSWERS)]
)
def test_golden_benchmarks_realworldqa_vlmevalkit(questions, answers):
    scored = REALWORLDQA.rules["vlmevalkit"](questions, answers)
    golden.assert_figures(scored, EXPECTED["figures"]["vlmevalkit_mcq"])
    golden.assert_figures(scored, VLMEVALKIT["figures"])
    golden.assert_scores(scored, questions, VLMEVALKIT["per_item"])
