"""easy-vqa: images of one coloured shape and questions about it, with a split of its own.

  pip install easy-vqa
  python -m emu3_jax.data.questions.easy_vqa --output=runs/easy_vqa

4,000 images and 38,575 questions to train on, 1,000 and 9,673 to test; 64 x 64 pixels, 13 answers
(github.com/vzhou842/easy-VQA, MIT licence). Writes train.jsonl (chats of one to eight turns),
train_captions.jsonl ("red circle", for the training images whose answers tell both), test.jsonl
(one question a row, with its kind), test_questions.jsonl (the same as a question file in LLaVA's
form, with answers: the benchmark `own_questions`) and the images.
"""

import importlib.util
import itertools
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from emu3_jax import command_line
from emu3_jax.data.questions.chats import Asked, chats, single, write_rows
from emu3_jax.files import new_folder, write_atomically
from emu3_jax.foreign import MissingPackageError

PACKAGE = "easy_vqa"
SPLITS = ("train", "test")
TURNS = 8
SHAPES = ("circle", "rectangle", "triangle")


def package_data() -> Path:
    """The data folder of the installed package, which is not imported.

    Raises:
      MissingPackageError: it is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        raise MissingPackageError("easy-vqa is not installed; pip install easy-vqa")
    return Path(found.origin).parent / "data"


def kind_of(answer: str) -> str:
    """What a question asks for, by its answer: "yes or no", "shape" or "colour"."""
    if answer in ("yes", "no"):
        return "yes or no"
    return "shape" if answer in SHAPES else "colour"


def write_questions(data: str | os.PathLike, output: str | os.PathLike) -> dict[str, int]:
    """Writes the rows and images of both splits; returns the number of rows of each file.

    Args:
      data: the data folder of the package: <split>/questions.json, a list of [question, answer,
        number of the image], and <split>/images/<number>.png.
      output: a new folder.

    Raises:
      ValueError: there is no such data, or the folder exists and is not empty.
    """
    data, counts = Path(data), {}
    with new_folder(Path(output)) as building:
        for split in SPLITS:
            file = data / split / "questions.json"
            if not file.is_file():
                raise ValueError(
                    f"{data} is not the data of easy-vqa: it has no {split}/{file.name}"
                )
            listed = json.loads(file.read_text(encoding="utf-8"))
            rows, captions, questions = [], [], []
            for number, group in itertools.groupby(listed, key=lambda row: row[2]):
                image = f"{split}/{number}.png"
                write_atomically(
                    building / image, (data / split / "images" / f"{number}.png").read_bytes()
                )
                asked = [Asked(kind_of(answer), question, answer) for question, answer, _ in group]
                if split == "train":
                    captions += _caption(f"{split}-{number}", image, asked)
                    rows += chats(f"{split}-{number}", image, asked, random.Random(number), TURNS)
                else:
                    rows += single(f"{split}-{number}", image, asked)
                    questions += _question_file(f"{split}-{number}", image, asked)
            files = {split: rows, f"{split}_captions": captions, f"{split}_questions": questions}
            for name, lines in files.items():
                if lines:
                    write_rows(building / f"{name}.jsonl", lines)
                    counts[name] = len(lines)
    return counts


def _caption(key: str, image: str, asked: Sequence[Asked]) -> list[dict]:
    """A row with the caption "red circle", if the answers of an image tell both."""
    said = {one.kind: one.answer for one in asked}
    if not {"colour", "shape"} <= said.keys():
        return []
    return [{"id": key, "image": image, "text": f"{said['colour']} {said['shape']}"}]


def _question_file(key: str, image: str, asked: Sequence[Asked]) -> list[dict]:
    return [
        {"question_id": f"{key}-{i}", "image": image, "text": one.question, "answer": one.answer,
         "category": one.kind}
        for i, one in enumerate(asked)
    ]  # fmt: skip


def _main() -> None:
    data = flags.FLAGS.data or package_data()
    print(json.dumps(write_questions(data, flags.FLAGS.output)))


if __name__ == "__main__":
    flags.DEFINE_string("output", "runs/easy_vqa", "New folder.")
    flags.DEFINE_string("data", "", "Its data folder; default: that of the installed package.")
    command_line.run(_main, __doc__)
