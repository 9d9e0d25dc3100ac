"""ChartQA: questions about charts, half of them by people; arXiv 2203.10244.

Released files (github.com/vis-nlp/ChartQA): test/test_human.json and test/test_augmented.json,
lists of {imgname, query, label}, and test/png. Papers print the mean of the two halves.
"""

import ast
import math
import pathlib
from collections.abc import Sequence

from emu3_jax.evaluate.benchmarks import reading
from emu3_jax.evaluate.benchmarks.averages import mean
from emu3_jax.evaluate.benchmarks.benchmark import Question, QuestionBenchmark, Score, Scored

HALVES = ("human", "augmented")
# The share of the truth by which a number may be wrong; of the paper, section 5.1.
TOLERANCE = 0.05


def read(data: pathlib.Path, version: str = "") -> list[Question]:
    """The test questions of both halves, or of the one that `version` names."""
    questions = []
    for half in (version,) if version else HALVES:
        path = data / "test" / f"test_{half}.json"
        for number, (where, row) in enumerate(reading.objects(path, reading.json_file(path, list))):
            image, text, label = reading.fields(where, row, imgname=str, query=str, label=str)
            file = reading.image_file(data / "test" / "png" / image, where)
            group = {"half": half}
            questions.append(
                Question(f"{half}/{number}", text, (file,), label, "short", group=group)
            )
    reading.check_unique(questions, str(data))
    return questions


def number(text: str) -> float | None:
    """A text as a number, "42%" as 0.42; None for other texts, such as "1,200" and "$5"."""
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def relaxed(answer: str, truth: str) -> bool:
    """relaxed_correctness of pix2struct: numbers within 5 %, other texts equal but for case.

    The truths zero and no number need an equal text. The edge of 5 % is that of float64.
    """
    found, wanted = number(answer), number(truth)
    if found is None or not wanted:
        return answer.lower() == truth.lower()
    return abs(found - wanted) / abs(wanted) <= TOLERANCE


def official(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """aggregate_metrics of pix2struct; in percent, as all figures here."""
    right = [relaxed(a, q.truth) for q, a in zip(questions, answers, strict=True)]
    halves = _halves(questions, right)
    figures = halves | {"pooled": 100.0 * mean(right)}
    if len(halves) == len(HALVES):
        figures["mean_of_halves"] = mean(list(halves.values()))
    return Scored(_scores(answers, right), figures)


def lmms_eval(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """tasks/chartqa/utils.py: decides as pix2struct does; the mean over all questions."""
    right = [relaxed(a, q.truth) for q, a in zip(questions, answers, strict=True)]
    figures = {"relaxed_overall": 100.0 * mean(right)}
    for half, value in _halves(questions, right).items():
        figures[f"relaxed_{half}_split"] = value
    return Scored(_scores(answers, right), figures)


def vlmevalkit(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """utils/vqa_eval.py: outer blanks are removed; a truth that reads as a list is one of many."""
    answers = [answer.strip() for answer in answers]
    right = [
        any(relaxed(answer, truth) for truth in _truths(question.truth))
        for question, answer in zip(questions, answers, strict=True)
    ]
    figures = {"Overall": 100.0 * mean(right)}
    for half, value in _halves(questions, right).items():
        figures[f"test_{half}"] = value
    return Scored(_scores(answers, right), figures)


def _truths(text: str) -> list[str]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return [text]
    return [str(item) for item in value] if isinstance(value, list) else [text]


def _halves(questions: Sequence[Question], right: Sequence[bool]) -> dict[str, float]:
    of_half: dict[str, list[bool]] = {}
    for question, score in zip(questions, right, strict=True):
        of_half.setdefault(question.group["half"], []).append(score)
    return {half: 100.0 * mean(of_half[half]) for half in HALVES if half in of_half}


def _scores(answers: Sequence[str], right: Sequence[bool]) -> list[Score]:
    """Parsed is the number, or the text if it is none; JSON has no infinity."""
    scores = []
    for answer, score in zip(answers, right, strict=True):
        found = number(answer)
        parsed = answer.lower() if found is None or not math.isfinite(found) else found
        scores.append(Score(parsed, float(score)))
    return scores


CHARTQA = QuestionBenchmark(
    read,
    dict(official=official, lmms_eval=lmms_eval, vlmevalkit=vlmevalkit),
    headline="official/mean_of_halves",
    max_new=16,  # of lmms-eval
    versions=HALVES,
)
