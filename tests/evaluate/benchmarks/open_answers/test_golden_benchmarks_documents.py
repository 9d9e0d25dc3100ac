"""DocVQA and InfographicVQA against the script of their competition, and the harnesses."""

import functools
import json

import pytest
from support import golden_benchmarks as golden

from emu3_jax.evaluate.benchmarks.registry import QUESTIONS

NAMES = ("docvqa", "infovqa")
HARNESSES = ("lmms_eval", "vlmevalkit", "m4c")
# What the golden file calls a rule.
GOLDEN = {"m4c": "m4c_st_vqa"}


@functools.cache
def asked(name):
    questions = QUESTIONS[name].read(golden.FOLDER / name, "")
    return questions, golden.answers(name, questions)


@pytest.mark.parametrize("name", NAMES)
def test_golden_benchmarks_documents_official(name):
    expected = golden.expected(name)
    scored = QUESTIONS[name].rules["official"](*asked(name))
    golden.assert_figures(scored, expected["figures"])
    golden.assert_scores(scored, asked(name)[0], expected["per_item"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rule", HARNESSES)
def test_golden_benchmarks_documents_harnesses(name, rule):
    expected = golden.expected(name)["other_harnesses"][GOLDEN.get(rule, rule)]
    scored = QUESTIONS[name].rules[rule](*asked(name))
    golden.assert_scores(scored, asked(name)[0], expected["per_item"])
    if expected["figures"]:
        golden.assert_figures(scored, expected["figures"])


@pytest.mark.parametrize("name", NAMES)
def test_golden_benchmarks_documents_submission(name):
    """The server takes a list with all questions, ids as numbers."""
    questions, answers = asked(name)
    files = QUESTIONS[name].submission(questions, answers)
    assert list(files) == ["submission.json"]
    rows = json.loads(files["submission.json"])
    wanted = zip(questions, answers, strict=True)
    assert rows == [{"questionId": int(q.id), "answer": answer} for q, answer in wanted]
