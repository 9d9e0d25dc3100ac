"""TextVQA: questions about the text in images; arXiv 1904.08920, textvqa.org.

Released files: TextVQA_0.5.1_val.json, {data: [{question_id, image_id, question, answers,
ocr_tokens …}]}, and the images in train_images. LLaVA writes the text that an OCR system found into
the prompt, which moves its score by about 12 points (58.2 with, 46.1 without): version "ocr".
"""

import pathlib
from collections.abc import Callable, Sequence

from emu3_jax.evaluate.benchmarks import reading
from emu3_jax.evaluate.benchmarks.averages import mean
from emu3_jax.evaluate.benchmarks.benchmark import Question, QuestionBenchmark, Score, Scored
from emu3_jax.evaluate.benchmarks.open_answers import normalising

QUESTIONS = "TextVQA_0.5.1_val.json"
IMAGES = "train_images"
OCR = "ocr"
GIVEN = 10  # answers a question; M4C's script refuses another number


def read(data: pathlib.Path, version: str = "") -> list[Question]:
    """The questions of the validation split, with a line of OCR tokens each in version "ocr"."""
    path = data / QUESTIONS
    (rows,) = reading.fields(str(path), reading.json_file(path), data=list)
    questions = []
    for where, row in reading.objects(path, rows):
        number, image, asked, given = reading.fields(
            where, row, question_id=int, image_id=str, question=str, answers=list
        )
        if len(given) != GIVEN or not all(isinstance(answer, str) for answer in given):
            raise ValueError(f"{where}: expected {GIVEN} answers, found {given}")
        text = asked + _hint(where, row) if version == OCR else asked
        file = reading.image_file(data / IMAGES / f"{image}.jpg", where)
        group = {"image": image, "question": asked}
        questions.append(Question(str(number), text, (file,), given, "short", group=group))
    reading.check_unique(questions, str(path))
    return questions


def _hint(where: str, row: dict) -> str:
    """LLaVA's line behind the question (llava_textvqa_val_v051_ocr.jsonl); also without tokens."""
    (tokens,) = reading.fields(where, row, ocr_tokens=list)
    if not all(isinstance(token, str) for token in tokens):
        raise ValueError(f"{where}: expected ocr_tokens of text, found {tokens}")
    return "\nReference OCR token: " + ", ".join(tokens)


def official(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """M4C's evaluator as LLaVA's eval_textvqa.py calls it; in percent.

    It finds the truth by image and question: where two rows have the same, that of the last counts.
    """
    truths = {_key(question): question.truth for question in questions}
    given = [truths[_key(question)] for question in questions]
    scored = _scored(answers, given, normalising.m4c, "accuracy")
    hidden = len(questions) - len(truths)
    if not hidden:
        return scored
    note = f"{hidden} questions are asked twice about an image; the official script scores these "
    return Scored(scored.scores, scored.figures, (note + "against the last one's answers",))


def lmms_eval(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """tasks/textvqa/utils.py: M4C's rule; in percent."""
    return _scored(answers, [q.truth for q in questions], normalising.m4c, "exact_match")


def vlmevalkit(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """utils/vqa_eval.py (vqa_score): the rule of VQA with another rule for stops; in percent."""
    return _scored(answers, [q.truth for q in questions], normalising.vlmevalkit, "Overall")


def _key(question: Question) -> tuple[str, str]:
    return question.group["image"], question.group["question"].lower()


def _scored(
    answers: Sequence[str], given: Sequence[Sequence[str]], form: Callable[[str], str], name: str
) -> Scored:
    scores = []
    for answer, people in zip(answers, given, strict=True):
        parsed = form(answer)
        scores.append(Score(parsed, normalising.agreement(parsed, [form(one) for one in people])))
    return Scored(scores, {name: 100.0 * mean([score.score for score in scores])})


TEXTVQA = QuestionBenchmark(
    read,
    dict(official=official, lmms_eval=lmms_eval, vlmevalkit=vlmevalkit),
    headline="official/accuracy",
    versions=(OCR,),
)
