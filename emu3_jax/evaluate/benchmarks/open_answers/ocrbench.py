"""OCRBench: reading text in images, from words to formulas; arXiv 2305.07895.

Released files (github.com/Yuliang-Liu/MultimodalOCR): OCRBench/OCRBench.json, a list of
{dataset_name, id, image_path, question, answers, type}, and OCRBench_Images. Papers print how many
of the 1000 answers hold a right text. An id occurs once in its data set, not in the file.
"""

import pathlib
from collections.abc import Callable, Sequence

from emu3_jax.evaluate.benchmarks import reading
from emu3_jax.evaluate.benchmarks.benchmark import Question, QuestionBenchmark, Score, Scored

FORMULAS = "Handwritten Mathematical Expression Recognition"
RECOGNITION = (
    "Regular Text Recognition",
    "Irregular Text Recognition",
    "Artistic Text Recognition",
    "Handwriting Recognition",
    "Digit String Recognition",
    "Non-Semantic Text Recognition",
)
OTHERS = (
    "Scene Text-centric VQA",
    "Doc-oriented VQA",
    "Key Information Extraction",
    FORMULAS,
)
# The data set of formulas; the folder of its images is HME100K.
HME = "HME100k"
RELEASED = 1000


def read(data: pathlib.Path, version: str = "") -> list[Question]:
    """All questions; ids are "<data set>/<id>"."""
    del version  # there is one
    path = data / "OCRBench" / "OCRBench.json"
    questions = []
    for where, row in reading.objects(path, reading.json_file(path, list)):
        dataset, number, image, text, kind = reading.fields(
            where, row, dataset_name=str, id=int, image_path=str, question=str, type=str
        )
        if kind not in RECOGNITION + OTHERS:
            raise ValueError(f"{where}: type is {kind!r}, expected one of {RECOGNITION + OTHERS}")
        if isinstance(row.get("answers"), str):
            row = row | {"answers": [row["answers"]]}
        truth = reading.texts(where, row, "answers")
        file = reading.image_file(data / "OCRBench_Images" / image, where)
        group = {"type": kind, "dataset": dataset}
        questions.append(
            Question(f"{dataset}/{number}", text, (file,), truth, "short", group=group)
        )
    reading.check_unique(questions, str(path))
    return questions


def official(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """OCRBench/example.py: counts of answers that hold a right text."""
    scores = _scores(questions, answers, [q.group["dataset"] == HME for q in questions])
    of_type = _of_type(questions, scores)
    figures = {
        "final_score": sum(of_type.values()),
        "out_of": len(questions),
        "text_recognition": sum(of_type[name] for name in RECOGNITION),
    }
    return Scored(scores, figures | {f"by_type/{name}": n for name, n in of_type.items()})


def lmms_eval(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """tasks/ocrbench/utils.py: full-width signs count as ASCII, but in formulas."""
    formulas = [q.group["dataset"] == HME for q in questions]
    scores = _scores(questions, answers, formulas, _half_width)
    count = sum(_of_type(questions, scores).values())
    return Scored(
        scores,
        {"score": count, "ocrbench_accuracy": count / RELEASED},
        (f"lmms-eval divides by {RELEASED} whatever the number of questions",),
    )


def vlmevalkit(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """OCRBench of image_vqa.py: formulas are told by their type, not by their data set."""
    scores = _scores(questions, answers, [q.group["type"] == FORMULAS for q in questions])
    of_type = _of_type(questions, scores)
    count = sum(of_type.values())
    figures = {"Text Recognition": sum(of_type[name] for name in RECOGNITION)}
    figures |= {name: of_type[name] for name in OTHERS}
    return Scored(
        scores,
        figures | {"Final Score": count, "Final Score Norm": count / 10},
        (f"VLMEvalKit's norm is a percentage of {RELEASED} questions only",),
    )


def _scores(
    questions: Sequence[Question],
    answers: Sequence[str],
    formulas: Sequence[bool],
    fold: Callable[[str], str] = str,
) -> list[Score]:
    """Whether an answer holds a truth: without case; of formulas without blanks, but with case."""

    def plain(text: str, formula: bool) -> str:
        if formula:
            return text.strip().replace("\n", "").replace(" ", "")
        return fold(text).lower().strip().replace("\n", " ")

    scores = []
    for question, answer, formula in zip(questions, answers, formulas, strict=True):
        found = plain(answer, formula)
        right = any(plain(truth, formula) in found for truth in question.truth)
        scores.append(Score(found, float(right)))
    return scores


def _of_type(questions: Sequence[Question], scores: Sequence[Score]) -> dict[str, float]:
    """Type → count of right answers; all types, in order."""
    counts = dict.fromkeys(RECOGNITION + OTHERS, 0.0)
    for question, score in zip(questions, scores, strict=True):
        counts[question.group["type"]] += score.score
    return counts


def _half_width(text: str) -> str:
    """Full-width ASCII (U+FF01 to U+FF5E) and the full-width blank as plain ASCII."""
    return text.translate({code + 0xFEE0: code for code in range(0x21, 0x7F)} | {0x3000: " "})


OCRBENCH = QuestionBenchmark(
    read,
    dict(official=official, lmms_eval=lmms_eval, vlmevalkit=vlmevalkit),
    headline="official/final_score",
    max_new=128,  # of lmms-eval; the authors' example has 100
)
