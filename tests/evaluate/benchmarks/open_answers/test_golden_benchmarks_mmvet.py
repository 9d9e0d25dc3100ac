"""MM-Vet against the authors' evaluator and VLMEvalKit, with given grades."""

import json

import numpy as np
import pytest
from support import golden_benchmarks as golden

from emu3_jax.evaluate.benchmarks.open_answers.mmvet import ANSWERS as ANSWERS_FILE
from emu3_jax.evaluate.benchmarks.open_answers.mmvet import MMVET, read, read_grades, rule

FOLDER = golden.FOLDER / "mmvet"
QUESTIONS = read(FOLDER)
ANSWERS = golden.answers("mmvet", QUESTIONS)
EXPECTED = golden.expected("mmvet")
(GRADE_FILE,) = FOLDER.glob("*-grade-*runs.json")
OFFICIAL = ("total", "std", "runs")


@pytest.fixture(scope="module", params=[GRADE_FILE.name, "judge_scores.jsonl"])
def scored(request):
    return rule(QUESTIONS, ANSWERS, read_grades(FOLDER / request.param, QUESTIONS))


def test_golden_benchmarks_mmvet_official(scored):
    figures = EXPECTED["figures"]
    golden.assert_figures(scored, {"total": figures["total"]})
    for name in ("by_capability", "by_integration"):
        wanted = dict(figures[name])
        total, std, runs = (wanted.pop(key) for key in OFFICIAL)
        golden.assert_figures(scored, {name: wanted, "total": total, "std": std})
        golden.assert_figures(scored, {f"run/{i}": run for i, run in enumerate(runs, start=1)})
    printed = figures["by_capability_printed_1_decimal"]
    found = {name: scored.figures[f"by_capability/{name}"] for name in printed.keys() - OFFICIAL}
    assert found == pytest.approx({name: printed[name] for name in found}, abs=0.05 + 1e-9)


def test_golden_benchmarks_mmvet_items(scored):
    items = [{"id": i["id"], "score": np.mean(i["score"])} for i in EXPECTED["per_item"]]
    golden.assert_scores(scored, QUESTIONS, items)
    capabilities = {q.id: sorted(set(q.group["capability"])) for q in QUESTIONS}
    assert capabilities == {i["id"]: i["capability"] for i in EXPECTED["per_item"]}


def test_golden_benchmarks_mmvet_vlmevalkit(scored):
    figures = EXPECTED["other_harnesses"]["vlmevalkit"]["figures"]
    golden.assert_figures(scored, {"vlmevalkit": figures})


def test_golden_benchmarks_mmvet_answers_for_the_judge():
    files = MMVET.judging.write(QUESTIONS, ANSWERS)
    rows = json.loads(files[ANSWERS_FILE])
    assert list(rows.items()) == [(q.id, a) for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
