"""MME against the official scorers, from both released layouts."""

import pytest
from support import golden_benchmarks as golden

from emu3_jax.evaluate.benchmarks.yes_no.mme import EVAL_TOOL, MME, TASKS, read

EXPECTED = golden.expected("mme")
HARNESSES = EXPECTED["other_harnesses"]


@pytest.fixture(params=["", EVAL_TOOL], scope="module")
def questions(request):
    return read(golden.FOLDER / "mme", request.param)


def scored(rule, questions):
    return MME.rules[rule](questions, golden.answers("mme", questions))


def test_golden_benchmarks_mme_official(questions):
    result = scored("official", questions)
    golden.assert_figures(result, EXPECTED["figures"])
    golden.assert_scores(result, questions, EXPECTED["per_item"])
    assert result.notes == ()


def test_golden_benchmarks_mme_lmms_eval(questions):
    result = scored("lmms_eval", questions)
    golden.assert_figures(result, HARNESSES["lmms_eval"]["figures"])
    golden.assert_scores(result, questions, HARNESSES["lmms_eval"]["per_item"])


def test_golden_benchmarks_mme_vlmevalkit(questions):
    result = scored("vlmevalkit", questions)
    wanted = dict(HARNESSES["vlmevalkit"]["figures"])
    names = {"perception": "perception", "reasoning": "cognition"} | {
        task: f"subtask/{task}/score" for task in TASKS["perception"] + TASKS["cognition"]
    }
    golden.assert_figures(result, {names[name]: value for name, value in wanted.items()})
    golden.assert_scores(result, questions, HARNESSES["vlmevalkit"]["per_item"])
