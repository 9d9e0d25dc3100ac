"""DocVQA and InfographicVQA: questions about scanned pages and about infographics.

arXiv 2007.00398 and 2104.12756; released by the Robust Reading Competition, rrc.cvc.uab.es,
challenge 17. Released files: spdocvqa_qas/{val_v1.0_withQT,test_v1.0}.json and spdocvqa_images;
infographicsvqa_qas/infographicsVQA_{val_v1.0_withQT,test_v1.0}.json and infographicsvqa_images.
The answers of the test splits are not released: the server of the competition scores them.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

from emu3_jax.evaluate.benchmarks import reading
from emu3_jax.evaluate.benchmarks.averages import mean
from emu3_jax.evaluate.benchmarks.benchmark import Question, QuestionBenchmark, Rule, Score, Scored

TEST = "test"
# Answers less alike than this score nothing; of the competition.
THRESHOLD = 0.5


def _read(
    data: pathlib.Path,
    version: str,
    *,
    files: Mapping[str, str],
    images: str,
    image_field: str,
) -> list[Question]:
    """The questions of a split.

    Args:
      data: folder of the release.
      version: "" for the validation split, or "test".
      files: version → file of questions, in `data`.
      images: folder of the images, in `data`.
      image_field: that names the image; of a path the last part counts, as the archive of DocVQA
        has no folder "documents".
    """
    path = data / files[version]
    (rows,) = reading.fields(str(path), reading.json_file(path), data=list)
    questions = []
    for where, row in reading.objects(path, rows):
        number, text, image = reading.fields(
            where, row, questionId=int, question=str, **{image_field: str}
        )
        truth = None if version == TEST else reading.texts(where, row, "answers")
        file = reading.image_file(data / images / pathlib.PurePosixPath(image).name, where)
        questions.append(Question(str(number), text, (file,), truth, "short"))
    reading.check_unique(questions, str(path))
    return questions


def edits(first: str, second: str) -> int:
    """Levenshtein distance: the least number of characters to insert, remove or replace."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        above, row = row, [i]
        for j, b in enumerate(second, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (a != b)))
    return row[-1]


def _competition(answer: str, truth: str) -> float:
    """Script of the competition: blanks are collapsed, but the length is that of the raw texts.

    The length is that of capitals: "ß" counts twice.
    """
    length = max(len(truth.upper()), len(answer.upper()))
    return edits(_plain(answer), _plain(truth)) / length if length else 0.0


def _m4c(answer: str, truth: str) -> float:
    """STVQAANLSEvaluator of M4C: only outer blanks are removed. It fails for two empty texts."""
    answer, truth = answer.lower().strip(), truth.lower().strip()
    length = max(len(answer), len(truth))
    return edits(answer, truth) / length if length else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _rule(distance: Callable[[str, str], float], figures: Mapping[str, float]) -> Rule:
    """ANLS: one minus the distance to the nearest truth, nothing below the threshold.

    Args:
      distance: (answer, truth) → from 0 to 1.
      figures: name of the mean → its scale.
    """

    def rule(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
        scores = []
        for question, answer in zip(questions, answers, strict=True):
            score = None
            if question.truth is not None:
                alike = 1.0 - min(distance(answer, truth) for truth in question.truth)
                score = alike if alike >= THRESHOLD else 0.0
            scores.append(Score(_plain(answer), score))
        known = [score.score for score in scores if score.score is not None]
        if not known:
            return Scored(scores, {}, ("the answers are not released: the server scores them",))
        return Scored(scores, {name: scale * mean(known) for name, scale in figures.items()})

    return rule


def _submission(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, bytes]:
    """What the server of the competition takes: [{questionId, answer}] for all questions."""
    rows = [
        {"questionId": int(question.id), "answer": answer}
        for question, answer in zip(questions, answers, strict=True)
    ]
    return {"submission.json": json.dumps(rows).encode()}


# lmms-eval (api/metrics.py) and VLMEvalKit (utils/vqa_eval.py) decide as the competition does.
_RULES = {
    "official": _rule(_competition, {"ANLS": 1.0, "ANLS_percent": 100.0}),
    "lmms_eval": _rule(_competition, {"anls": 1.0}),
    "vlmevalkit": _rule(_competition, {"Overall": 100.0}),
    "m4c": _rule(_m4c, {"ANLS": 1.0}),
}


def _benchmark(**release) -> QuestionBenchmark:
    return QuestionBenchmark(
        functools.partial(_read, **release),
        _RULES,
        headline="official/ANLS",
        versions=(TEST,),
        submission=_submission,
    )


DOCVQA = _benchmark(
    files={"": "spdocvqa_qas/val_v1.0_withQT.json", TEST: "spdocvqa_qas/test_v1.0.json"},
    images="spdocvqa_images",
    image_field="image",
)
INFOVQA = _benchmark(
    files={
        "": "infographicsvqa_qas/infographicsVQA_val_v1.0_withQT.json",
        TEST: "infographicsvqa_qas/infographicsVQA_test_v1.0.json",
    },
    images="infographicsvqa_images",
    image_field="image_local_name",
)
