"""ScienceQA, questions with an image; arXiv 2209.09513, github.com/lupantech/ScienceQA.

Released files (data/scienceqa): problems.json, pid_splits.json and images/test/<id>/<image>. Papers
print the accuracy over the questions of the test split that have an image ("IMG"). The version
"all" asks those without one too. The rule that such papers use is LLaVA's.
"""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

from emu3_jax.evaluate.benchmarks import reading
from emu3_jax.evaluate.benchmarks.averages import mean
from emu3_jax.evaluate.benchmarks.benchmark import Question, QuestionBenchmark, Score, Scored
from emu3_jax.evaluate.benchmarks.choices import letters, option_tables

ALL = "all"
SPLIT = "test"
# The most options that a released question has, and that LLaVA's rule knows.
_LETTERS = "ABCDE"
# LLaVA leaves the dot unescaped: any character may follow the letter, but one must.
_THE_ANSWER = re.compile(r"The answer is ([A-Z]).")
FAILED = "FAILED"


def read(data: pathlib.Path, version: str = "") -> list[Question]:
    """The test questions with an image, in the order of pid_splits.json; all of them with "all"."""
    splits, problems = data / "pid_splits.json", data / "problems.json"
    (keys,) = reading.fields(str(splits), reading.json_file(splits), **{SPLIT: list})
    of_key = reading.json_file(problems)
    questions = []
    for key in keys:
        where = f"{problems}, {key!r}"
        if key not in of_key:
            raise ValueError(f"{where}: the question is missing; {splits} has it")
        question = _question(data, where, str(key), of_key[key])
        if version == ALL or question.images:
            questions.append(question)
    reading.check_unique(questions, str(splits))
    return questions


def _question(data: pathlib.Path, where: str, key: str, row: Any) -> Question:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, found {type(row).__name__}")
    text, choices, number, hint = reading.fields(
        where, row, question=str, choices=list, answer=int, hint=str
    )
    options = letters.lettered(choices)
    if len(options) > len(_LETTERS):
        raise ValueError(f"{where}: {len(options)} choices, expected at most {len(_LETTERS)}")
    truth = _LETTERS[number] if 0 <= number < len(options) else str(number)
    option_tables.check_options(where, options, truth)
    images = ()
    if row.get("image"):
        images = (reading.image_file(data / "images" / SPLIT / key / row["image"], where),)
    return Question(key, text, images, truth, "choice", options, hint)


def official(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """LLaVA's eval_science_qa.py; nothing is stripped; percent."""

    def parse(answer: str) -> str:
        if answer and answer in tuple(_LETTERS):
            return answer
        if answer[:1] and answer[0] in _LETTERS and answer[1:3] == ". ":
            return answer[0]
        found = _THE_ANSWER.findall(answer)
        return found[0] if len(found) == 1 else FAILED

    scores = letters.scores(questions, [parse(answer) for answer in answers])
    figures = _over_images(questions, scores, "img_accuracy", "accuracy_all")
    counts = {"n_img": sum(bool(question.images) for question in questions)}
    if "accuracy_all" in figures:
        counts["n_all"] = len(questions)
    return Scored(scores, figures | counts)


def lmms_eval(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """tasks/scienceqa/utils.py: the letter in any case, or an upper one before a dot; percent."""

    def parse(answer: str) -> str | None:
        answer = answer.strip()
        if answer.upper() in tuple(_LETTERS):
            return answer.upper()
        return answer[0] if answer[:1].isupper() and answer[1:2] == "." else None

    scores = letters.scores(questions, [parse(answer) for answer in answers])
    return Scored(scores, _over_images(questions, scores, "img", "all"))


def vlmevalkit(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """VLMEvalKit's exact matching; percent here, to stand beside the others."""
    scores = letters.vlmevalkit_rule(questions, answers).scores
    return Scored(scores, _over_images(questions, scores, "img", "all"))


def _over_images(
    questions: Sequence[Question], scores: Sequence[Score], img: str, all_: str
) -> dict[str, float]:
    """Percent of questions with an image, and of all where others were asked."""
    hits = [100.0 * score.score for score in scores]
    seen = [hit for question, hit in zip(questions, hits, strict=True) if question.images]
    figures = {img: mean(seen)}
    return figures | ({all_: mean(hits)} if len(seen) < len(hits) else {})


SCIENCEQA = QuestionBenchmark(
    read,
    dict(official=official, lmms_eval=lmms_eval, vlmevalkit=vlmevalkit),
    headline="official/img_accuracy",
    versions=(ALL,),
)
