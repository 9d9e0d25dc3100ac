"""MMMU, validation: 30 college subjects; arXiv 2311.16502, github.com/MMMU-Benchmark/MMMU.

Released files: <Subject>/validation-*.parquet, columns id, question, options (the text of a list),
answer, question_type and image_1 to image_7; "<image 2>" in a question or an option stands for the
second image. An answer that names no option is replaced by a random one, so that guesses are part
of the published score.
"""

import ast
import pathlib
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from emu3_jax.evaluate.benchmarks import reading
from emu3_jax.evaluate.benchmarks.averages import mean
from emu3_jax.evaluate.benchmarks.benchmark import Question, QuestionBenchmark, Score, Scored
from emu3_jax.evaluate.benchmarks.choices import letters, mmmu_answers, option_tables

FIRST_IMAGE = "first_image"
MOST_IMAGES = 7
# The seed of the authors' random guesses (mmmu/utils/eval_utils.py, bb0b95a).
SEED = 42

DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy", "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics",
        "Energy_and_Power", "Materials", "Mechanical_Engineering",
    ),
}  # fmt: skip
# In the order in which the authors' script scores them, and so draws guesses.
SUBJECTS = (
    "Accounting", "Agriculture", "Architecture_and_Engineering", "Art", "Art_Theory",
    "Basic_Medical_Science", "Biology", "Chemistry", "Clinical_Medicine", "Computer_Science",
    "Design", "Diagnostics_and_Laboratory_Medicine", "Economics", "Electronics",
    "Energy_and_Power", "Finance", "Geography", "History", "Literature", "Manage", "Marketing",
    "Materials", "Math", "Mechanical_Engineering", "Music", "Pharmacy", "Physics", "Psychology",
    "Public_Health", "Sociology",
)  # fmt: skip

_MARK = re.compile(r"<image (\d+)>")
_KINDS = {"multiple-choice": "choice", "open": "short"}


def read(data: pathlib.Path, version: str = "") -> list[Question]:
    """The questions of all subjects that are there, in the authors' order.

    Models of one image get the version "first_image": other images are left out, and their marks
    become words ("image 2").
    """
    questions = []
    for subject in SUBJECTS:
        for path in sorted((data / subject).glob("validation-*.parquet")):
            for where, row in reading.parquet(path):
                questions.append(_question(where, row, subject, version == FIRST_IMAGE))
    reading.check_unique(questions, f"{data}: <Subject>/validation-*.parquet")
    return questions


def _question(where: str, row: Mapping[str, Any], subject: str, first_only: bool) -> Question:
    key, text, listed, answer, kind = reading.fields(
        where, row, id=str, question=str, options=str, answer=str, question_type=str
    )
    if kind not in _KINDS:
        raise ValueError(f"{where}: question_type is {kind!r}, expected one of {', '.join(_KINDS)}")
    try:
        choices = ast.literal_eval(listed)
    except (ValueError, SyntaxError):
        choices = None
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"{where}: options is {listed!r}, expected the text of a list of texts")
    options = letters.lettered(choices)
    if _KINDS[kind] == "choice":
        option_tables.check_options(where, options, answer)
    cells = [row.get(f"image_{number}") for number in range(1, MOST_IMAGES + 1)]
    images = [reading.parquet_image(cell, where) for cell in cells if cell is not None]
    if not images or None in cells[: len(images)]:
        raise ValueError(f"{where}: image_{cells.index(None) + 1} is missing")
    for number in map(int, _MARK.findall(" ".join([text, *choices]))):
        if not 1 <= number <= len(images):
            raise ValueError(
                f"{where}: the question shows <image {number}>, but it has {len(images)} images"
            )
    if first_only:
        images = images[:1]
        text = _marks_as_words(text)
        options = {letter: _marks_as_words(option) for letter, option in options.items()}
    group = {"subject": subject}
    return Question(key, text, tuple(images), answer, _KINDS[kind], options, group=group)


def _marks_as_words(text: str) -> str:
    return _MARK.sub(lambda found: found[0] if found[1] == "1" else f"image {found[1]}", text)


def official(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """main_parse_and_eval.py with --subject ALL; fractions.

    "overall_if_unparsed_were_wrong" is the score without what random guesses gained.
    """
    guesses = random.Random(SEED)
    scores: list[Score] = [Score(None, None)] * len(questions)
    read_right = [0.0] * len(questions)
    num_guessed = 0
    # Guesses are one stream over the subjects in order.
    for i in sorted(range(len(questions)), key=lambda i: _place(questions[i])):
        question, guessed = questions[i], False
        if question.kind == "choice":
            parsed, guessed = mmmu_answers.letter(answers[i], question.options, guesses)
            right = parsed == question.truth
        else:
            found = mmmu_answers.phrases(answers[i])
            right = mmmu_answers.is_right(found, mmmu_answers.truths(question.truth))
            parsed = sorted(map(str, found))
        scores[i] = Score(parsed, float(right))
        read_right[i] = float(right and not guessed)
        num_guessed += guessed
    figures = _accuracies(questions, [score.score for score in scores])
    figures["overall_if_unparsed_were_wrong"] = mean(read_right)
    note = f"{num_guessed} answers named no option: the published rule guesses at random for them"
    return Scored(scores, figures, ((note,) if num_guessed else ()) + _missing(questions))


def lmms_eval(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """tasks/mmmu/utils.py (75571cf): letters alone, for it scores every open answer as wrong.

    It too guesses at random; here from the same seed, there from what its process drew before.
    """
    guesses = random.Random(SEED)
    scores = []
    for question, answer in zip(questions, answers, strict=True):
        if question.kind != "choice":
            scores.append(Score(None, 0.0))
            continue
        parsed, _ = mmmu_answers.letter(
            answer, question.options, guesses, mmmu_answers.LMMS_EVAL_FORMS
        )
        scores.append(Score(parsed, float(parsed == question.truth)))
    note = "this version of lmms-eval scores every open question as wrong, whatever the answer"
    return Scored(scores, {"acc": mean([score.score for score in scores])}, (note,))


def vlmevalkit(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """VLMEvalKit's exact matching; fractions.

    An open question becomes one with the options A, its answer as released, and B, "Other Answers".
    A is right, unless the released answer is itself a capital letter.
    """
    parsed, truths = [], []
    for question, answer in zip(questions, answers, strict=True):
        options = letters.seen_by_pandas(question.options)
        if "A" not in options:
            options |= {"A": question.truth, "B": "Other Answers"}
        parsed.append(letters.vlmevalkit(answer, options))
        is_letter = len(question.truth) == 1 and "A" <= question.truth <= "Z"
        truths.append(question.truth if is_letter else "A")
    scores = [Score(p, float(p == truth)) for p, truth in zip(parsed, truths, strict=True)]
    return Scored(scores, {"Overall": mean([score.score for score in scores])})


def _place(question: Question) -> int:
    return SUBJECTS.index(question.group["subject"])


def _accuracies(questions: Sequence[Question], hits: Sequence[float]) -> dict[str, float]:
    """Of all, of each subject that is there, and of each discipline, 0 for an empty one."""
    figures = {"overall": mean(hits)}
    of: dict[str, list[float]] = {}
    for question, hit in zip(questions, hits, strict=True):
        of.setdefault(question.group["subject"], []).append(hit)
    for subject in SUBJECTS:
        if subject in of:
            figures[f"subject/{subject}/acc"] = mean(of[subject])
            figures[f"subject/{subject}/num_example"] = len(of[subject])
    for discipline, subjects in DISCIPLINES.items():
        inside = [hit for subject in subjects for hit in of.get(subject, ())]
        figures[f"discipline/{discipline}/acc"] = mean(inside) if inside else 0.0
        figures[f"discipline/{discipline}/num_example"] = len(inside)
    return figures


def _missing(questions: Sequence[Question]) -> tuple[str, ...]:
    present = {question.group["subject"] for question in questions}
    if len(present) == len(SUBJECTS):
        return ()
    return (f"{len(present)} of MMMU's {len(SUBJECTS)} subjects are there",)


MMMU = QuestionBenchmark(
    read,
    dict(official=official, lmms_eval=lmms_eval, vlmevalkit=vlmevalkit),
    headline="official/overall",
    max_new=128,
    versions=(FIRST_IMAGE,),
)
