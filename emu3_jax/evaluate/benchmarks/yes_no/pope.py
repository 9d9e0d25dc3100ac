"""POPE: does an object occur in an image of COCO; arXiv 2305.10355, github.com/AoiDragon/POPE.

Released files: coco_pope_{random,popular,adversarial}.json, JSON lines {question_id, image, text,
label}, and the images of COCO's val2014. There are two releases: in that of LLaVA-type papers
(commit e3e3926) the random split has 2,910 questions, later 3,000. Papers print the mean F1 of the
three splits.
"""

import pathlib
from collections.abc import Callable, Sequence

from emu3_jax.evaluate.benchmarks import reading
from emu3_jax.evaluate.benchmarks.averages import mean
from emu3_jax.evaluate.benchmarks.benchmark import Question, QuestionBenchmark, Score, Scored
from emu3_jax.evaluate.benchmarks.yes_no.words import whole_word

SPLITS = ("random", "popular", "adversarial")
IMAGES = "val2014"
FIRST_RANDOM = 2910  # questions of the random split in the first release


def read(data: pathlib.Path, version: str = "") -> list[Question]:
    """The questions of the three splits, or of the one that `version` names."""
    questions = []
    for split in (version,) if version else SPLITS:
        for where, row in reading.json_lines(data / f"coco_pope_{split}.json"):
            number, image, text, label = reading.fields(
                where, row, question_id=int, image=str, text=str, label=str
            )
            if label not in ("yes", "no"):
                raise ValueError(f"{where}: label is {label!r}, expected 'yes' or 'no'")
            path = reading.image_file(data / IMAGES / image, where)
            group = {"split": split}
            key = f"{split}/{number}"
            questions.append(Question(key, text, (path,), label, "yes_no", group=group))
    reading.check_unique(questions, str(data))
    return questions


def official(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """evaluate.py of the authors: "no" if a word of the first sentence is; all else is "yes"."""

    def parse(answer: str) -> str:
        words = answer.split(".")[0].replace(",", "").split(" ")
        return "no" if {"No", "not", "no"} & set(words) else "yes"

    parsed = [parse(answer) for answer in answers]
    figures = {}
    for split, pairs in _by_split(questions, parsed).items():
        yes = mean([found == "yes" for _, found in pairs])
        counts = dict(zip(("TP", "FP", "TN", "FN"), _counts(pairs), strict=True))
        numbers = _figures(pairs) | {"yes_ratio": yes}
        figures |= {f"{split}/{name}": value for name, value in (numbers | counts).items()}
    if all(f"{split}/f1" in figures for split in SPLITS):
        for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
            values = [figures[f"{split}/{name}"] for split in SPLITS]
            figures[f"mean_of_3/{name}"] = mean(values)
    random = sum(question.group["split"] == "random" for question in questions)
    note = "the random split is that of the first release, 2,910 questions; later it has 3,000"
    return Scored(_scores(questions, parsed), figures, (note,) if random == FIRST_RANDOM else ())


def lmms_eval(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """tasks/pope/utils.py: the whole answer must be "yes" or "no", apart from case and blanks.

    Other answers are wrong but count neither in precision nor in recall. "yes_ratio" is that of the
    labels, as there.
    """
    parsed = [answer.lower().strip() for answer in answers]
    figures = {}
    groups = _by_split(questions, parsed) | {
        "pooled": [(q.truth, found) for q, found in zip(questions, parsed, strict=True)]
    }
    for split, pairs in groups.items():
        yes = mean([truth == "yes" for truth, _ in pairs])
        known = [(truth, found) for truth, found in pairs if found in ("yes", "no")]
        accuracy = mean([truth == found for truth, found in pairs])
        numbers = _figures(known) | {"accuracy": accuracy, "yes_ratio": yes}
        figures |= {f"{split}/{name}": value for name, value in numbers.items()}
    return Scored(
        _scores(questions, parsed),
        figures,
        ("lmms-eval computes yes_ratio from the labels, not from the answers",),
    )


def vlmevalkit(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """utils/yorn.py: the word yes or no anywhere, not both; in percent.

    Answers with neither count as no in precision and recall.
    """
    parsed = [whole_word(answer) for answer in answers]
    figures = {}
    groups = {
        "Overall": [(q.truth, found) for q, found in zip(questions, parsed, strict=True)]
    } | _by_split(questions, parsed)
    for split, pairs in groups.items():
        accuracy = mean([truth == found for truth, found in pairs])
        asked = [(truth, "yes" if found == "yes" else "no") for truth, found in pairs]
        numbers = _figures(asked) | {"accuracy": accuracy}
        figures |= {f"{split}/{name}": 100.0 * value for name, value in numbers.items()}
    return Scored(_scores(questions, parsed), figures)


def _by_split(questions: Sequence[Question], parsed: Sequence[str]) -> dict[str, list]:
    groups: dict[str, list] = {}
    for question, found in zip(questions, parsed, strict=True):
        groups.setdefault(question.group["split"], []).append((question.truth, found))
    return groups


def _scores(questions: Sequence[Question], parsed: Sequence[str]) -> list[Score]:
    return [Score(p, float(p == q.truth)) for q, p in zip(questions, parsed, strict=True)]


def _counts(pairs: Sequence[tuple[str, str]]) -> tuple[int, int, int, int]:
    """True and false positives, true and false negatives; "yes" is positive."""
    of: Callable[[str, str], int] = lambda truth, found: pairs.count((truth, found))  # noqa: E731
    return of("yes", "yes"), of("no", "yes"), of("no", "no"), of("yes", "no")


def _figures(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    tp, fp, tn, fn = _counts(pairs)
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / (tp + fn) if tp + fn else 0.0
    both = precision + recall
    return {
        "accuracy": (tp + tn) / len(pairs) if pairs else 0.0,
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / both if both else 0.0,
    }


POPE = QuestionBenchmark(
    read,
    dict(official=official, lmms_eval=lmms_eval, vlmevalkit=vlmevalkit),
    headline="official/mean_of_3/f1",
    versions=SPLITS,
)
