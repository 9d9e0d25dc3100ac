"""RealWorldQA: photographs of real places; 765 questions, x.ai/blog/grok-1.5v.

Two forms: the parquet files of xai-org/RealworldQA, columns image, question, answer, whose
questions hold their options and an instruction ("Please answer directly with …"); and VLMEvalKit's
RealWorldQA.tsv (see `option_tables`), which has options in columns. There is no rule of the makers.
"""

import pathlib
import re
from collections.abc import Sequence

from emu3_jax.evaluate.benchmarks import reading
from emu3_jax.evaluate.benchmarks.averages import mean
from emu3_jax.evaluate.benchmarks.benchmark import Question, QuestionBenchmark, Score, Scored
from emu3_jax.evaluate.benchmarks.choices import letters, option_tables

TABLE = "RealWorldQA.tsv"

_OPTION = re.compile(r"^([A-Z])\. +(.*?)\s*$", re.MULTILINE)
# lmms-eval takes a question for one with options if its answer is one of these.
_LETTERS = "ABCD"


def read(data: pathlib.Path, version: str = "") -> list[Question]:
    """The questions of a folder's parquet files, or of its TSV if it has none; one version.

    A question of a parquet file is asked word for word, so its kind is "short" even if it has
    options.
    """
    del version
    questions = []
    for path in reading.tables(data, TABLE):
        if path.suffix == ".tsv":
            for row in option_tables.rows(path):
                if row.options:
                    option_tables.check_options(row.where, row.options, row.answer)
                kind = "choice" if row.options else "short"
                questions.append(
                    Question(row.id, row.text, (row.image,), row.answer, kind,
                             row.options, group=row.group)
                )  # fmt: skip
            continue
        for where, row in reading.parquet(path):
            text, answer = reading.fields(where, row, question=str, answer=str)
            answer = answer.strip()
            options = dict(_OPTION.findall(text))
            options = options if answer in options else {}
            image = reading.parquet_image(row.get("image"), where)
            questions.append(
                Question(str(len(questions)), text.strip(), (image,), answer, "short", options)
            )
    reading.check_unique(questions, str(data))
    return questions


def lmms_eval(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """tasks/realworldqa: a letter by the shared extraction, else equal text without case; percent.

    Only the released answer decides which of the two.
    """
    scores, lettered = [], []
    for question, answer in zip(questions, answers, strict=True):
        truth = question.truth.strip()
        lettered.append(truth.upper() in tuple(_LETTERS))
        if lettered[-1]:
            parsed, wanted = letters.lmms_eval(answer, _LETTERS), truth.upper()
        else:
            parsed, wanted = answer.lower().strip().rstrip("."), truth.lower()
        scores.append(Score(parsed, float(parsed == wanted)))
    hits = [100.0 * score.score for score in scores]
    figures = {"accuracy": mean(hits)}
    for name, kind in {"mcq": True, "open": False}.items():
        chosen = [hit for hit, letter in zip(hits, lettered, strict=True) if letter == kind]
        figures |= {name: mean(chosen)} if chosen else {}
    return Scored(scores, figures)


def vlmevalkit(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """VLMEvalKit's exact matching of the questions with options; a fraction."""
    chosen = [i for i, question in enumerate(questions) if question.options]
    scored = letters.vlmevalkit_rule([questions[i] for i in chosen], [answers[i] for i in chosen])
    scores = [Score(None, None)] * len(questions)
    for i, score in zip(chosen, scored.scores, strict=True):
        scores[i] = score
    note = f"of the {len(chosen)} questions with options"
    return Scored(scores, scored.figures, (note,) if len(chosen) < len(questions) else ())


REALWORLDQA = QuestionBenchmark(
    read,
    dict(lmms_eval=lmms_eval, vlmevalkit=vlmevalkit),
    headline="lmms_eval/accuracy",
)
