"""GQA: questions made from scene graphs; arXiv 1902.09506, cs.stanford.edu/people/dorarad/gqa.

Released files: testdev_balanced_questions.json, {number: {question, imageId, answer, isBalanced,
types …}}, and a folder of images. Answers are compared with one word or phrase; only balanced
questions are scored.
"""

import json
import pathlib
import string
from collections.abc import Callable, Sequence

from emu3_jax.evaluate.benchmarks import reading
from emu3_jax.evaluate.benchmarks.averages import mean
from emu3_jax.evaluate.benchmarks.benchmark import Question, QuestionBenchmark, Score, Scored

QUESTIONS = "testdev_balanced_questions.json"
PREDICTIONS = "testdev_balanced_predictions.json"
IMAGES = "images"

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def read(data: pathlib.Path, version: str = "") -> list[Question]:
    """The questions of the balanced test-dev split."""
    del version
    path = data / QUESTIONS
    questions = []
    for number, row in reading.json_file(path).items():
        where = f"{path}, question {number}"
        reading.check_object(where, row)
        text, image, answer, balanced, types = reading.fields(
            where, row, question=str, imageId=str, answer=str, isBalanced=bool, types=dict
        )
        (structural,) = reading.fields(f"{where}, types", types, structural=str)
        file = reading.image_file(data / IMAGES / f"{image}.jpg", where)
        group = {"type": "open" if structural == "query" else "binary", "balanced": balanced}
        questions.append(Question(number, text, (file,), answer, "short", group=group))
    reading.check_unique(questions, str(path))
    return questions


def official(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """eval.py of the authors, after LLaVA's convert_gqa_for_eval.py; in percent.

    Stops at the end go, then the answer is in small letters; blanks stay, and the truth stays as it
    is written.
    """
    parsed = [_converted(answer) for answer in answers]
    scores = _scores(questions, parsed, lambda truth: truth)
    figures = {}
    for name in ("accuracy", "binary", "open"):
        values = [
            score.score
            for question, score in zip(questions, scores, strict=True)
            if score.score is not None and name in ("accuracy", question.group["type"])
        ]
        # The authors give 0 for no question of a type.
        figures[name] = 100.0 * mean(values) if values else 0.0
    return Scored(scores, figures)


def lmms_eval(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """exact_match, ignore_case and ignore_punctuation of api/metrics.py; in percent."""

    def form(text: str) -> str:
        # NumPy keeps the length of the text: what is longer in small letters is cut.
        return text.lower()[: len(text)].translate(_WITHOUT_PUNCTUATION)

    scores = _scores(questions, [form(answer) for answer in answers], form)
    return Scored(scores, {"exact_match": _percent(scores)})


def vlmevalkit(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """utils/vqa_eval.py (accuracy): apart from case and blanks at the ends; in percent."""

    def form(text: str) -> str:
        return text.strip().lower()

    scores = _scores(questions, [form(answer) for answer in answers], form)
    return Scored(scores, {"Overall": _percent(scores)})


def submission(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, bytes]:
    """The file that eval.py of the authors takes."""
    rows = [
        {"questionId": question.id, "prediction": _converted(answer)}
        for question, answer in zip(questions, answers, strict=True)
    ]
    return {PREDICTIONS: json.dumps(rows).encode()}


def _converted(answer: str) -> str:
    return answer.rstrip(".").lower()


def _scores(
    questions: Sequence[Question], parsed: Sequence[str], form: Callable[[str], str]
) -> list[Score]:
    return [
        Score(found, float(found == form(question.truth)) if question.group["balanced"] else None)
        for question, found in zip(questions, parsed, strict=True)
    ]


def _percent(scores: Sequence[Score]) -> float:
    return 100.0 * mean([score.score for score in scores if score.score is not None])


GQA = QuestionBenchmark(
    read,
    dict(official=official, lmms_eval=lmms_eval, vlmevalkit=vlmevalkit),
    headline="official/accuracy",
    submission=submission,
)
