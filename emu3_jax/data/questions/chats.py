"""Questions about one image → rows of `<split>.jsonl`: chats to train on, single ones to ask."""

import dataclasses
import json
import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from emu3_jax.files import write_atomically


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question about an image.

    Attributes:
      kind: what is asked for, such as "tone"; evaluation states a figure for each.
      question, answer: verbatim.
    """

    kind: str
    question: str
    answer: str


def chats(
    key: str, image: str, asked: Sequence[Asked], draw: random.Random, longest: int
) -> list[dict]:
    """Chats of 1 to `longest` turns, of lengths drawn uniformly, that together ask everything once.

    Args:
      key: begins the ids of the rows.
      image: path of the image, relative to the jsonl file; it stands before the first question.
      asked: the questions.
      draw: gives the order and the lengths.
      longest: most turns of a chat.
    """
    left, rows = draw.sample(asked, len(asked)), []
    while left:
        count = min(draw.randint(1, longest), len(left))
        now, left = left[:count], left[count:]
        rows.append({"id": f"{key}-{len(rows)}", "turns": _turns(image, now)})
    return rows


def single(key: str, image: str, asked: Sequence[Asked]) -> list[dict]:
    """A row for each question, with its kind: what the evaluator `questions` reads."""
    return [
        {"id": f"{key}-{i}", "turns": _turns(image, [one]), "kind": one.kind}
        for i, one in enumerate(asked)
    ]


def write_rows(path: str | os.PathLike, rows: Iterable[dict]) -> None:
    """Writes a jsonl file under a temporary name and renames it."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(Path(path), lines.encode())


def _turns(image: str, asked: Sequence[Asked]) -> list[dict]:
    turns = [{"question": one.question, "answer": one.answer} for one in asked]
    return [{"image": image, **turns[0]}, *turns[1:]]
