"""Questions of your own: a question file in LLaVA's form, with the answers in it.

A line is {"question_id", "image", "text", "answer"} and, where wanted, "category" and "options", a
list of texts that get the letters A, B, …; "image" is a path relative to the file, or a list of
them. An answer is right if it is the true one apart from case, outer blanks and a full stop; with
options, their letters are the answers.
"""

import pathlib
import string
from collections.abc import Sequence

from emu3_jax.evaluate.benchmarks import reading
from emu3_jax.evaluate.benchmarks.averages import mean
from emu3_jax.evaluate.benchmarks.benchmark import Question, QuestionBenchmark, Score, Scored


def read(data: pathlib.Path, version: str = "") -> list[Question]:
    """The questions of a file."""
    questions = []
    for where, row in reading.json_lines(data):
        text, answer = reading.fields(where, row, text=str, answer=str)
        key = row.get("question_id")
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise ValueError(f"{where}: question_id is {key!r}, expected a text or a whole number")
        images = row.get("image", [])
        images = [images] if isinstance(images, str) else images
        if not isinstance(images, list) or not all(isinstance(one, str) for one in images):
            raise ValueError(f"{where}: image is {images!r}, expected a path or a list of paths")
        paths = tuple(reading.image_file(data.parent / one, where) for one in images)
        options = _options(row.get("options", []), answer, where)
        kind = "choice" if options else "short"
        group = {"category": str(row.get("category", ""))}
        questions.append(Question(str(key), text, paths, answer, kind, options, group=group))
    reading.check_unique(questions, str(data))
    return questions


def exact(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """The share of right answers in percent, of all and of each category."""
    scores = [
        Score(parsed, float(parsed == _plain(question.truth)))
        for question, parsed in zip(questions, map(_plain, answers), strict=True)
    ]
    groups: dict[str, list[float]] = {"accuracy": [score.score for score in scores]}
    for question, score in zip(questions, scores, strict=True):
        if question.group["category"]:
            groups.setdefault(f"accuracy/{question.group['category']}", []).append(score.score)
    return Scored(scores, {name: 100.0 * mean(values) for name, values in groups.items()})


def _options(texts: object, answer: str, where: str) -> dict[str, str]:
    letters = string.ascii_uppercase
    if not isinstance(texts, list) or len(texts) > len(letters):
        raise ValueError(f"{where}: options are {texts!r}, expected a list of at most 26 texts")
    options = dict(zip(letters, map(str, texts), strict=False))
    if options and answer not in options:
        raise ValueError(
            f"{where}: answer is {answer!r}, expected one of the letters {', '.join(options)}"
        )
    return options


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").strip().casefold()


OWN_QUESTIONS = QuestionBenchmark(read, dict(official=exact), headline="official/accuracy")
