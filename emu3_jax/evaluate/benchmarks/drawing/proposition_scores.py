"""DPG-Bench's questions, and its score of their answers.

The rules are those of dpg_bench/compute_dpg_bench.py (TencentQQGYLab/ELLA, 3c228f1), with its
faults: the first row of the csv is passed over, and categories are those of the last crop alone.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from emu3_jax.evaluate.benchmarks import reading
from emu3_jax.evaluate.benchmarks.averages import mean
from emu3_jax.evaluate.benchmarks.drawing.drawing import Results

CROPS = 4
COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")
# Crop by crop: number of a question → answer.
Answers = Sequence[Mapping[int, str]]


@dataclasses.dataclass(frozen=True)
class Proposition:
    """A question about an image.

    Attributes:
      row: in the csv, from 0.
      number: in its prompt, from 1.
      parents: numbers of the questions without whose "yes" it counts as "no"; 0 stands for none.
      category: such as "attribute - color".
      text: the question.
    """

    row: int
    number: int
    parents: tuple[int, ...]
    category: str
    text: str


def read_propositions(file: pathlib.Path) -> dict[str, list[Proposition]]:
    """The questions of each prompt in dpg_bench.csv, in the order of the file."""
    questions: dict[str, list[Proposition]] = {}
    previous = None
    for row, (where, cells) in enumerate(reading.tsv(file, *COLUMNS, delimiter=",")):
        name, number, parents, kind, text = (cells[column] for column in COLUMNS)
        if name in questions and name != previous:
            raise ValueError(f"{where}: the rows of {name!r} do not stand together")
        try:
            numbers = int(number), tuple(int(parent) for parent in parents.split(","))
        except ValueError as error:
            raise ValueError(
                f"{where}: proposition_id {number!r} and dependency {parents!r} must be numbers"
            ) from error
        known = questions.setdefault(name, [])
        if numbers[0] in {question.number for question in known}:
            raise ValueError(f"{where}: {name!r} has the proposition {number} twice")
        known.append(Proposition(row, *numbers, kind.split("(")[0].strip(), text))
        previous = name
    return questions


def score(
    propositions: Mapping[str, Sequence[Proposition]],
    answers: Mapping[str, Answers],
    keep_first: bool = False,
) -> Results:
    """The figures of the answers about all images that have any.

    Args:
      propositions: prompt → its questions.
      answers: prompt → its answers.
      keep_first: ask the first row of the csv too. The script does not, and an image of that prompt
        is left out wholly if another of its questions names the first as its parent.

    Returns:
      scores from 0 to 1 of the images, and figures in percent.

    Raises:
      ValueError: a question of an image has no answer.
    """
    scores, categories, dropped = {}, {}, []
    for name, crops in answers.items():
        asked = [question for question in propositions[name] if keep_first or question.row]
        try:
            each = [_crop_score(name, asked, crop) for crop in crops]
        except KeyError:
            each = []
        if not each or not asked:
            dropped.append(name)
            continue
        if len(crops) != CROPS:
            raise ValueError(f"{name!r} has answers about {len(crops)} crops, expected {CROPS}")
        scores[name] = mean(each)
        # The script keeps the answers about the last crop only, before parents count.
        for question in asked:
            right = float(crops[-1][question.number] == "yes")
            categories.setdefault(question.category, []).append(right)
    figures = {"dpg_score": 100 * mean(list(scores.values()))}
    broad: dict[str, list[float]] = {}
    for category, right in sorted(categories.items()):
        figures[f"l2/{category}"] = 100 * mean(right)
        broad.setdefault(category.split("-")[0].strip(), []).extend(right)
    figures |= {f"l1/{category}": 100 * mean(right) for category, right in broad.items()}
    notes = ["l1 and l2 are of the last of four crops alone, and parents do not count in them"]
    if not keep_first:
        notes.append("the script passes over the first row of the csv: one question is not asked")
    if dropped:
        notes.append(
            f"the script drops {dropped[0]!r} from the mean: other questions depend on the first "
            "row of the csv, which it does not ask"
        )
    return Results(scores, figures, notes)


def _crop_score(name: str, asked: Sequence[Proposition], answers: Mapping[int, str]) -> float:
    """From 0 to 1; KeyError if a question depends on one that is not asked."""
    missing = [question.number for question in asked if question.number not in answers]
    if missing:
        raise ValueError(f"{name!r}: the proposition {missing[0]} of a crop has no answer")
    right = {question.number: answers[question.number] == "yes" for question in asked}
    # In order and in place: a question that lost its parent takes its own children along, but only
    # those behind it.
    for question in asked:
        if any(not right[parent] for parent in question.parents if parent):
            right[question.number] = False
    return sum(right.values()) / len(right) if right else 0.0
