"""Questions about emoji, made from their labels, groups, tags, tones of skin and styles.

  python -m emu3_jax.data.questions.emoji --corpus=runs/emoji

Writes into the corpus questions_train.jsonl (chats of one to four turns), and
questions_validation.jsonl and questions_validation_combination.jsonl (one question a row, with its
kind). Each fact is asked in one of
several phrasings. Half of the answers to yes-or-no questions are yes; a wrong tone, group or tag is
one of the training split. Everything is drawn from the emoji's id, so that the
files are always the same.

What is held out is the emoji: the questions about it are of the same kinds and phrasings.
"""

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from emu3_jax import command_line
from emu3_jax.data.fluent_emoji import TONES, read_split, splits_of
from emu3_jax.data.questions.chats import Asked, chats, single, write_rows

# Most turns of a chat: with an image of 8 x 8 codes all fit into a row of the nano model.
TURNS = 4

NAME = ("What is it?", "What does the picture show?", "Name the thing.")
GROUP = ("Which group is it from?", "Which group does it belong to?", "What sort of emoji is it?")
IS_GROUP = ("Is it from the group {}?", "Does it belong to {}?")
TONE = ("Which skin tone is it?", "What tone of skin is shown?", "Name the skin tone.")
IS_TONE = ("Is the skin tone {}?", "Does it have a {} skin tone?")
EITHER_TONE = ("Is the skin {} or {}?", "Which of the two tones is it: {} or {}?")
STYLE = ("In which style is it?", "Which style is it drawn in?", "Name the style.")
IS_TAG = ("Does the word {} fit?", "Could it mean {}?")


def questions(row: dict, groups: Sequence[str], tags: Sequence[str]) -> list[Asked]:
    """All questions about one emoji.

    Args:
      row: of `<split>.jsonl` of the corpus.
      groups, tags: all that are known, of which wrong ones are drawn.
    """
    draw = random.Random(row["id"])
    asked = [
        Asked("name", draw.choice(NAME), row["base"]),
        Asked("group", draw.choice(GROUP), row["group"]),
        _yes_or_no("is group", IS_GROUP, row["group"], groups, (row["group"],), draw),
    ]
    if row["tags"]:
        tag = draw.choice(row["tags"])
        asked.append(_yes_or_no("is tag", IS_TAG, tag, tags, row["tags"], draw))
    if row["tone"]:
        tone = TONES[row["tone"] - 1]
        other = draw.choice([t for t in TONES if t != tone])
        two = draw.sample((tone, other), 2)
        asked += [
            Asked("tone", draw.choice(TONE), tone),
            Asked("which tone", draw.choice(EITHER_TONE).format(*two), tone),
            _yes_or_no("is tone", IS_TONE, tone, TONES, (tone,), draw),
        ]
    if row.get("style"):  # a corpus of several
        asked.append(Asked("style", draw.choice(STYLE), row["style"]))
    return asked


def _yes_or_no(
    kind: str,
    phrasings: Sequence[str],
    right: str,
    known: Sequence[str],
    all_right: Sequence[str],
    draw: random.Random,
) -> Asked:
    """Asks for `right`, or as often for one of `known` that is not in `all_right`."""
    yes = draw.random() < 0.5
    named = right if yes else draw.choice([one for one in known if one not in all_right])
    return Asked(kind, draw.choice(phrasings).format(named), "yes" if yes else "no")


def write_questions(corpus: str | os.PathLike) -> dict[str, int]:
    """Writes questions_<split>.jsonl for each split; returns the number of rows by file stem.

    Args:
      corpus: the unpacked corpus (`emu3_jax.data.fluent_emoji`); the files are written into it.

    Raises:
      ValueError: there is no such corpus.
    """
    stills = {
        split: [row for row in read_split(corpus, split) if "image" in row]
        for split in splits_of(corpus)
    }
    groups = sorted({row["group"] for row in stills["train"]})
    tags = sorted({tag for row in stills["train"] for tag in row["tags"]})
    counts = {}
    for split, of_split in stills.items():
        rows = []
        for row in of_split:
            asked = questions(row, groups, tags)
            if split == "train":
                rows += chats(row["id"], row["image"], asked, random.Random(row["id"]), TURNS)
            else:
                rows += single(row["id"], row["image"], asked)
        name = f"questions_{split}"
        write_rows(Path(corpus) / f"{name}.jsonl", rows)
        counts[name] = len(rows)
    return counts


def _main() -> None:
    print(json.dumps(write_questions(flags.FLAGS.corpus)))


if __name__ == "__main__":
    flags.DEFINE_string("corpus", "runs/emoji", "The unpacked corpus.")
    command_line.run(_main, __doc__)
