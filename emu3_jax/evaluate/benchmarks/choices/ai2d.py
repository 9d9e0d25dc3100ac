"""AI2D: diagrams of primary-school science; arXiv 1603.07396, test split as harnesses have it.

Two forms: the parquet files of lmms-lab/ai2d, columns question, options, answer (the number of the
option), image; and VLMEvalKit's AI2D_TEST.tsv (see `option_tables`). In both the labels in the
diagram are masked by letters; with AI2D_TEST_NO_MASK.tsv, given as the file, they are not, which is
easier by several points. AI2D has no rule of its own for answers in words.
"""

import dataclasses
import pathlib
import re
import string
from collections.abc import Sequence

from emu3_jax.evaluate.benchmarks import reading
from emu3_jax.evaluate.benchmarks.averages import mean
from emu3_jax.evaluate.benchmarks.benchmark import Question, QuestionBenchmark, Scored
from emu3_jax.evaluate.benchmarks.choices import letters, option_tables

TABLE = "AI2D_TEST.tsv"

_LETTER_FIRST = re.compile(r"\s*([A-Z])\.")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def read(data: pathlib.Path, version: str = "") -> list[Question]:
    """The questions of a folder's parquet files, or of its TSV if it has none; one version."""
    del version
    questions = []
    for path in reading.tables(data, TABLE):
        if path.suffix == ".tsv":
            for row in option_tables.rows(path):
                option_tables.check_options(row.where, row.options, row.answer)
                questions.append(
                    Question(row.id, row.text, (row.image,), row.answer, "choice",
                             row.options, group=row.group)
                )  # fmt: skip
            continue
        for where, row in reading.parquet(path):
            text, choices, number = reading.fields(
                where, row, question=str, options=list, answer=str
            )
            options = letters.lettered(choices)
            right = number.isdecimal() and int(number) < len(options)
            truth = list(options)[int(number)] if right else number
            option_tables.check_options(where, options, truth)
            image = reading.parquet_image(row.get("image"), where)
            questions.append(
                Question(str(len(questions)), text, (image,), truth, "choice", options)
            )
    reading.check_unique(questions, str(data))
    return questions


def lmms_eval(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """tasks/ai2d: "B." at the start, or the letter and punctuation alone, in any case; percent."""
    parsed = []
    for answer in answers:
        found = _LETTER_FIRST.match(answer)
        parsed.append(found[1] if found else answer)
    plain = [found.lower().translate(_NO_PUNCTUATION).upper() for found in parsed]
    right = letters.scores(questions, plain)
    hits = [100.0 * score.score for score in right]
    shown = [
        dataclasses.replace(score, parsed=found) for score, found in zip(right, parsed, strict=True)
    ]
    return Scored(shown, {"accuracy": mean(hits)})


AI2D = QuestionBenchmark(
    read,
    dict(lmms_eval=lmms_eval, vlmevalkit=letters.vlmevalkit_rule),
    headline="lmms_eval/accuracy",
)
