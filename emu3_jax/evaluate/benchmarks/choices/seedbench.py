"""SEED-Bench, image split; arXiv 2307.16125, github.com/AILab-CVC/SEED-Bench.

Released files: SEED-Bench.json and the folder SEED-Bench-image with files named by data_id. The
authors take the option with the highest likelihood; LLaVA and others ask for a letter, which gives
other numbers. Both end in a letter, so that one rule scores both. Questions about clips (types 10
to 12) are passed over: papers print the image split.
"""

import pathlib
from collections.abc import Sequence

from emu3_jax.evaluate.benchmarks import reading
from emu3_jax.evaluate.benchmarks.averages import mean
from emu3_jax.evaluate.benchmarks.benchmark import Question, QuestionBenchmark, Scored
from emu3_jax.evaluate.benchmarks.choices import letters, option_tables

FILE = "SEED-Bench.json"
IMAGES = "SEED-Bench-image"


def read(data: pathlib.Path, version: str = "") -> list[Question]:
    """The questions about images; there is one version."""
    del version
    path = data / FILE
    rows, types = reading.fields(
        str(path), reading.json_file(path), questions=list, question_type=dict
    )
    names = {number: name for name, number in types.items()}
    questions = []
    for number, row in enumerate(rows, start=1):
        where = f"{path}, question {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected an object, found {type(row).__name__}")
        (kind,) = reading.fields(where, row, data_type=str)
        if kind not in ("image", "video"):
            raise ValueError(f"{where}: data_type is {kind!r}, expected 'image' or 'video'")
        if kind == "video":
            continue
        key, text, answer, image, task = reading.fields(
            where, row, question_id=str, question=str, answer=str, data_id=str,
            question_type_id=int,
        )  # fmt: skip
        if task not in names:
            raise ValueError(f"{where}: question_type_id {task} is not in question_type")
        options = {
            letter: row[name]
            for letter in "ABCD"
            if row.get(name := f"choice_{letter.lower()}") not in (None, "")
        }
        option_tables.check_options(where, options, answer)
        file = reading.image_file(data / IMAGES / image, where)
        group = {"category": names[task]}
        questions.append(Question(key, text, (file,), answer, "choice", options, group=group))
    reading.check_unique(questions, str(path))
    return questions


def official(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """LLaVA's convert_seed_for_submission.py: the answer must be the letter and no more; percent.

    Nothing is stripped. It is the authors' figure where answers come from likelihoods.
    """
    scores = letters.scores(questions, answers)
    hits = [100.0 * score.score for score in scores]
    figures = {"image_accuracy": mean(hits)}
    by_type = letters.accuracies(questions, hits)
    figures |= {name: value for name, value in by_type.items() if name != "Overall"}
    return Scored(scores, figures)


def lmms_eval(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """tasks/seedbench/utils.py: the first character in any case, so that "apple" is A; percent."""
    parsed = [answer.strip()[:1].upper() for answer in answers]
    scores = letters.scores(questions, parsed)
    return Scored(scores, {"seed_image": 100.0 * mean([score.score for score in scores])})


SEEDBENCH = QuestionBenchmark(
    read,
    dict(official=official, lmms_eval=lmms_eval, vlmevalkit=letters.vlmevalkit_rule),
    headline="official/image_accuracy",
)
