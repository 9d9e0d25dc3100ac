"""MM-Vet: open questions whose answers a language model grades; arXiv 2308.02490.

Released files (github.com/yuweihao/MM-Vet, mm-vet.zip): mm-vet.json, {id: {imagename, question,
answer, capability}}, and images. The judge is gpt-4-0613, which the authors' mm-vet_evaluator.py
asks; papers print the mean of its grades, of one run or of five. Another judge gives other numbers.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from emu3_jax.evaluate.benchmarks import reading
from emu3_jax.evaluate.benchmarks.benchmark import (
    Judging,
    Question,
    QuestionBenchmark,
    Score,
    Scored,
)

# Of the authors; their evaluator takes NAME of a file results/NAME.json as --model=NAME.
JUDGE = "gpt-4-0613"
ANSWERS = "answers.json"
# In the order of VLMEvalKit.
CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")


@dataclasses.dataclass(frozen=True)
class Grades:
    """What the judge gave one answer.

    Attributes:
      scores: one per run, from 0 to 1.
      judges: the models that answered, as far as the file names them.
    """

    scores: tuple[float, ...]
    judges: tuple[str, ...]


def read(data: pathlib.Path, version: str = "") -> list[Question]:
    """All questions; the group has the list "capability"."""
    del version  # there is one
    path = data / "mm-vet.json"
    questions = []
    for where, key, row in _entries(path):
        image, text, truth = reading.fields(where, row, imagename=str, question=str, answer=str)
        capabilities = reading.texts(where, row, "capability")
        if unknown := sorted(set(capabilities) - set(CAPABILITIES)):
            raise ValueError(
                f"{where}: capability is {unknown[0]!r}, expected one of {CAPABILITIES}"
            )
        file = reading.image_file(data / "images" / image, where)
        group = {"capability": capabilities}
        questions.append(Question(key, text, (file,), truth, "long", group=group))
    reading.check_unique(questions, str(path))
    return questions


def write(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, bytes]:
    """The file of answers that the authors' evaluator takes: {id: answer}."""
    rows = {question.id: answer for question, answer in zip(questions, answers, strict=True)}
    return {ANSWERS: json.dumps(rows, indent=1).encode()}


def read_grades(path: pathlib.Path, questions: Sequence[Question]) -> list[Grades]:
    """The grades of each question, in order.

    Args:
      path: the grade file of the authors' evaluator, {id: {model, content, score}} with one entry
        per run in each; or JSON lines {id, scores}.
      questions: all of the benchmark.

    Raises:
      ValueError: other questions, not all, a question twice, no or another number of runs, or a
        score that is not from 0 to 1.
    """
    grades: dict[str, Grades] = {}
    lines = path.suffix == ".jsonl"
    for where, key, row in _lines(path) if lines else _entries(path):
        if key in grades:
            raise ValueError(f"{where}: the id {key!r} occurs twice; ids must differ")
        (scores,) = reading.fields(where, row, **{"scores" if lines else "score": list})
        if not scores or not all(_is_grade(score) for score in scores):
            raise ValueError(f"{where}: the scores are {scores}, expected numbers from 0 to 1")
        judges = reading.texts(where, row, "model") if "model" in row else ()
        grades[key] = Grades(tuple(map(float, scores)), tuple(judges))
    ids = [question.id for question in questions]
    if others := sorted(grades.keys() - set(ids)):
        raise ValueError(f"{path}: {others[0]!r} is not a question of this benchmark")
    if missing := [key for key in ids if key not in grades]:
        raise ValueError(
            f"{path}: {len(grades)} of {len(ids)} questions are judged; {missing[0]!r} is not"
        )
    runs = len(grades[ids[0]].scores)
    if uneven := [key for key in ids if len(grades[key].scores) != runs]:
        raise ValueError(
            f"{path}: {uneven[0]!r} is judged {len(grades[uneven[0]].scores)} times and "
            f"{ids[0]!r} {runs} times; expected as many runs of each"
        )
    return [grades[key] for key in ids]


def _lines(path: pathlib.Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(where, id, row) of JSON lines with ids."""
    for where, row in reading.json_lines(path):
        (key,) = reading.fields(where, row, id=str)
        yield where, key, row


def _entries(path: pathlib.Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(where, id, row) of a json file {id: row}."""
    for key, row in reading.json_file(path).items():
        where = f"{path}, {key}"
        reading.check_object(where, row)
        yield where, key, row


def _is_grade(score: Any) -> bool:
    return isinstance(score, (int, float)) and not isinstance(score, bool) and 0 <= score <= 1


def rule(questions: Sequence[Question], answers: Sequence[str], grades: Sequence[Grades]) -> Scored:
    """mm-vet_evaluator.py, in percent, and beside it the groups of VLMEvalKit's utils/mmvet.py.

    A question's score is the mean of its runs; an integration is the set of its capabilities.
    """
    scores = np.array([grade.scores for grade in grades])  # [questions, runs]
    runs = 100.0 * scores.mean(axis=0)
    each = scores.mean(axis=1)
    figures = {"total": float(runs.mean()), "std": float(runs.std())}
    figures |= {f"run/{i}": float(value) for i, value in enumerate(runs, start=1)}
    capabilities = [question.group["capability"] for question in questions]
    groups = {
        "by_capability": _means([set(c) for c in capabilities], each),
        "by_integration": _means([["+".join(sorted(set(c)))] for c in capabilities], each),
    } | _vlmevalkit(capabilities, each)
    for group, means in groups.items():
        figures |= {f"{group}/{name}": value for name, value in means.items()}
    parsed = [list(grade.scores) for grade in grades]
    judged = [Score(p, float(s)) for p, s in zip(parsed, each, strict=True)]
    judges = sorted({judge for grade in grades for judge in grade.judges})
    named = f"judged by {', '.join(judges)}" if judges else "the file does not name its judge"
    return Scored(
        judged,
        figures,
        (
            f"{named}; figures of papers are by {JUDGE}",
            "VLMEvalKit counts questions of a single capability twice in its groups",
        ),
    )


def _vlmevalkit(capabilities: Sequence[Sequence[str]], scores: np.ndarray) -> dict[str, dict]:
    """Its two tables share their sums, in which a single capability is an integration too.

    An integration is a text, in which the order of the capabilities counts.
    """
    joined = ["_".join(c) for c in capabilities]
    means = _means(
        [[*set(c), name, "Overall"] for c, name in zip(capabilities, joined, strict=True)], scores
    )
    tables = {
        "by_capability": [name for name in CAPABILITIES if name in means],
        "by_integration": list(dict.fromkeys(joined)),
    }
    return {
        f"vlmevalkit/{table}": {name: means[name] for name in [*names, "Overall"]}
        for table, names in tables.items()
    }


def _means(names: Sequence[Iterable[str]], scores: np.ndarray) -> dict[str, float]:
    """Name → mean in percent over the questions of that name, as often as they have it."""
    of_name: dict[str, list[float]] = {}
    for question_names, score in zip(names, scores, strict=True):
        for name in question_names:
            of_name.setdefault(name, []).append(score)
    return {name: 100.0 * float(np.mean(values)) for name, values in sorted(of_name.items())}


# Nothing is scored without the judge.
MMVET = QuestionBenchmark(
    read,
    {},
    headline="judged/total",
    max_new=1024,  # of lmms-eval
    judging=Judging(write, read_grades, rule),
)
