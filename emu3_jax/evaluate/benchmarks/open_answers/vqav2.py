"""VQAv2: open questions about images of COCO; arXiv 1612.00837, visualqa.org.

Released files: v2_OpenEnded_mscoco_<split>_questions.json, v2_mscoco_val2014_annotations.json with
ten answers a question, and the images of COCO in val2014 and test2015. The answers of the test
splits are with the server alone (EvalAI): of these splits the file to upload is written, and
nothing is scored here.
"""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from emu3_jax.evaluate.benchmarks import reading
from emu3_jax.evaluate.benchmarks.averages import mean
from emu3_jax.evaluate.benchmarks.benchmark import Question, QuestionBenchmark, Score, Scored
from emu3_jax.evaluate.benchmarks.open_answers import normalising

VALIDATION = "val2014"
TEST, TEST_DEV = "test2015", "test-dev2015"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"

# (answer, those given by people) → both in the form in which they are compared.
Forms = Callable[[str, Sequence[str]], tuple[str, list[str]]]


def read(data: pathlib.Path, version: str = "") -> list[Question]:
    """The questions of val2014, or those of a test split, whose truth is None."""
    split = version or VALIDATION
    path = data / _file(split)
    folder = VALIDATION if split == VALIDATION else TEST
    annotations = _annotations(data / ANNOTATIONS) if split == VALIDATION else None
    whole = data / _file(TEST)
    if split == TEST_DEV and not whole.is_file():
        raise ValueError(f"{whole} does not exist; what is uploaded has all its questions")
    (rows,) = reading.fields(str(path), reading.json_file(path), questions=list)
    questions = []
    for where, row in reading.objects(path, rows):
        number, image, text = reading.fields(
            where, row, question_id=int, image_id=int, question=str
        )
        truth, group = None, {}
        if annotations is not None:
            truth, group = _annotated(annotations, number, image, where)
        file = reading.image_file(data / folder / f"COCO_{folder}_{image:012d}.jpg", where)
        group = {"split": split, "whole": str(whole), **group}
        questions.append(Question(str(number), text, (file,), truth, "short", group=group))
    reading.check_unique(questions, str(path))
    if annotations is not None and len(annotations) > len(questions):
        extra = next(iter(annotations.keys() - {int(question.id) for question in questions}))
        raise ValueError(
            f"{data / ANNOTATIONS} annotates question {extra}, which {path} does not hold: the "
            "two files are of different questions"
        )
    return questions


def _file(split: str) -> str:
    return f"v2_OpenEnded_mscoco_{split}_questions.json"


def _annotations(path: pathlib.Path) -> dict[int, dict[str, Any]]:
    """Number of a question → {where, image, answers, group}."""
    (rows,) = reading.fields(str(path), reading.json_file(path), annotations=list)
    found: dict[int, dict[str, Any]] = {}
    for where, row in reading.objects(path, rows):
        number, image, of_question, of_answer, answers = reading.fields(
            where,
            row,
            question_id=int,
            image_id=int,
            question_type=str,
            answer_type=str,
            answers=list,
        )
        if number in found:
            raise ValueError(f"{where}: question {number} is annotated twice")
        given = [
            reading.fields(here, answer, answer_id=int, answer=str)
            for here, answer in reading.objects(where, answers)
        ]
        # The rule leaves out one record at a time; without ids it would leave out all equal ones.
        if not given or len({identity for identity, _ in given}) < len(given):
            raise ValueError(f"{where}: expected answers whose answer_id differ, found {answers}")
        found[number] = {
            "image": image,
            "answers": [answer for _, answer in given],
            "group": {"question_type": of_question, "answer_type": of_answer},
        }
    return found


def _annotated(
    annotations: Mapping[int, Mapping[str, Any]], number: int, image: int, where: str
) -> tuple[list[str], dict[str, str]]:
    annotation = annotations.get(number)
    if annotation is None or annotation["image"] != image:
        raise ValueError(
            f"{where}: {ANNOTATIONS} has no annotation of question {number} about image {image}; "
            "is it of other questions?"
        )
    return annotation["answers"], annotation["group"]


def official(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """vqaEval.py of the authors; in percent.

    If all people gave the same answer nothing is normalised, not even case.
    """
    scores = _scores(questions, answers, _official_forms)
    known = [(q, score.score) for q, score in zip(questions, scores, strict=True) if q.truth]
    groups: dict[str, list[float]] = {}
    for question, score in known:
        for name in (
            "overall",
            f"perAnswerType/{question.group['answer_type']}",
            f"perQuestionType/{question.group['question_type']}",
        ):
            groups.setdefault(name, []).append(score)
    return Scored(scores, {name: 100.0 * mean(values) for name, values in groups.items()})


def llava(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """What the official rule gives for answers that M4C normalised, as LLaVA uploads them."""
    return official(questions, [normalising.m4c(answer) for answer in answers])


def lmms_eval(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """tasks/vqav2/utils.py: always normalised; in percent."""
    return _mean(questions, answers, normalising.lmms_eval, "exact_match")


def vlmevalkit(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """utils/vqa_eval.py (vqa_score), which has no VQAv2 itself: always normalised; in percent."""
    return _mean(questions, answers, normalising.vlmevalkit, "Overall")


def submission(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, bytes]:
    """The file that EvalAI takes; answers are normalised as LLaVA does.

    A file of test-dev has all questions of the test split, with "" for those that were not asked.
    """
    given = {
        int(question.id): normalising.m4c(answer)
        for question, answer in zip(questions, answers, strict=True)
    }
    split = questions[0].group["split"]
    if split == TEST_DEV:
        whole = pathlib.Path(questions[0].group["whole"])
        numbers = [row["question_id"] for row in reading.json_file(whole)["questions"]]
        if not given.keys() <= set(numbers):
            raise ValueError(f"{whole} does not hold the questions of {TEST_DEV}")
        given = dict.fromkeys(numbers, "") | given
    rows = [{"question_id": number, "answer": answer} for number, answer in given.items()]
    return {f"v2_OpenEnded_mscoco_{split}_emu3_results.json": json.dumps(rows).encode()}


def _official_forms(answer: str, given: Sequence[str]) -> tuple[str, list[str]]:
    given = [normalising.one_line(one) for one in given]
    form = normalising.official if len(set(given)) > 1 else normalising.one_line
    return form(answer), [form(one) for one in given]


def _scores(questions: Sequence[Question], answers: Sequence[str], forms: Forms) -> list[Score]:
    scores = []
    for question, answer in zip(questions, answers, strict=True):
        parsed, given = forms(answer, question.truth or [])
        scores.append(Score(parsed, normalising.agreement(parsed, given) if given else None))
    return scores


def _mean(
    questions: Sequence[Question], answers: Sequence[str], form: Callable[[str], str], name: str
) -> Scored:
    scores = _scores(questions, answers, lambda a, given: (form(a), [form(one) for one in given]))
    known = [score.score for score in scores if score.score is not None]
    return Scored(scores, {name: 100.0 * mean(known)} if known else {})


VQAV2 = QuestionBenchmark(
    read,
    dict(official=official, llava=llava, lmms_eval=lmms_eval, vlmevalkit=vlmevalkit),
    headline="official/overall",
    versions=(TEST, TEST_DEV),
    submission=submission,
)
