"""Tables of questions with options as VLMEvalKit releases them: a TSV with base64 images.

Columns: index, image, question, A, B, … (an empty cell is no option), answer (a letter), and some
of hint, category, l2-category, split. The image of a row that shares one is the index of the row
that has it.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from emu3_jax.evaluate.benchmarks import reading

# VLMEvalKit takes a cell up to this length for an index (dataset/image_base.py, e8e78f0).
LONGEST_INDEX = 64
_GROUPS = ("category", "l2-category", "split")


class Row(NamedTuple):
    """One row: where it stands, its parts, and what figures are split by."""

    where: str
    id: str
    text: str
    image: bytes
    options: Mapping[str, str]
    hint: str
    answer: str
    group: Mapping[str, str]


def rows(path: pathlib.Path) -> Iterator[Row]:
    """The rows of a table; ValueError for a cell that is not as it must be."""
    found, images = [], {}
    for where, cells in reading.tsv(path, "index", "question", "image"):
        image = cells.pop("image")
        if len(image) > LONGEST_INDEX:
            image = reading.base64_image(image, where)
        images.setdefault(cells["index"], image)
        found.append((where, cells))
    for where, cells in found:
        image = images[cells["index"]]
        shared = image if isinstance(image, bytes) else images.get(image)
        if not isinstance(shared, bytes):
            raise ValueError(
                f"{where}: the image {image!r} is neither base64 nor the index of a row with one"
            )
        letters = [name for name in cells if len(name) == 1 and name.isupper()]
        yield Row(
            where,
            cells["index"],
            cells["question"],
            shared,
            {letter: cells[letter] for letter in letters if cells[letter]},
            cells.get("hint", ""),
            cells.get("answer", ""),
            {name: cells[name] for name in _GROUPS if cells.get(name)},
        )


def check_options(where: str, options: Mapping[str, str], answer: str) -> None:
    """ValueError for a question without options, or whose answer is none of them."""
    if not options:
        raise ValueError(f"{where}: the question has no options")
    if answer not in options:
        raise ValueError(f"{where}: the answer is {answer!r}, expected one of {', '.join(options)}")
