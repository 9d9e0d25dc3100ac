"""The golden figures of benchmarks; their folder is that of GOLDEN_BENCHMARKS.

Each folder has made-up questions in the released files, answers, and what the official scorer and
the harnesses gave for them, item by item.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from support.paths import GOLDEN

from emu3_jax.evaluate.benchmarks.benchmark import Question, Scored

FOLDER = pathlib.Path(os.environ.get("GOLDEN_BENCHMARKS", GOLDEN / "benchmarks"))
# Some scorers multiply in float32 or print eight decimals.
TOLERANCE = 1e-6


def expected(name: str) -> dict[str, Any]:
    """What the scorers gave for the answers of a benchmark."""
    return json.loads((FOLDER / name / "expected.json").read_text(encoding="utf-8"))


def answers(name: str, questions: Sequence[Question], others: bool = False) -> list[str]:
    """The golden answer to each question; all are used, unless there are `others`."""
    lines = (FOLDER / name / "predictions.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    by_id = {str(row["id"]): row["answer"] for row in rows}
    assert others or by_id.keys() == {question.id for question in questions}
    return [by_id[question.id] for question in questions]


def flat(figures: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested figures under the joined names; texts are left out.

    VLMEvalKit prints lists of one number.
    """
    numbers: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, list) and len(value) == 1:
            (value,) = value
        if isinstance(value, Mapping):
            numbers |= flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            numbers[prefix + name] = value
    return numbers


def assert_figures(scored: Scored, figures: Mapping[str, Any]) -> None:
    """All numbers of `figures` are among the figures of a rule, and equal."""
    wanted = flat(figures)
    assert wanted
    found = {name: scored.figures.get(name) for name in wanted}
    assert found == pytest.approx(wanted, abs=TOLERANCE)


def assert_scores(scored: Scored, questions: Sequence[Question], per_item: Any) -> None:
    """The score of each item, and what was parsed where it is given.

    Args:
      scored: under the rule.
      questions: its items.
      per_item: a list of {id, score, parsed}, or id → score.
    """
    if isinstance(per_item, Mapping):
        per_item = [{"id": key, "score": value} for key, value in per_item.items()]
    assert per_item
    of_id = {q.id: score for q, score in zip(questions, scored.scores, strict=True)}
    found = {str(item["id"]): of_id[str(item["id"])].score for item in per_item}
    wanted = {str(item["id"]): item["score"] for item in per_item}
    assert found == pytest.approx(wanted, abs=TOLERANCE)
    parsed = {str(item["id"]): item["parsed"] for item in per_item if "parsed" in item}
    assert {key: of_id[key].parsed for key in parsed} == parsed
