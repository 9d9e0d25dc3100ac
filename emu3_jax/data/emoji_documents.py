"""Documents of the emoji corpus: edits, and clips after their first image or their first half.

  python -m emu3_jax.data.emoji_documents --corpus=runs/emoji

Writes into the corpus
  edits_<split>.jsonl   source image, instruction, target image (the layout "edit"), for each split;
  videos_<split>.jsonl  of each clip two documents: caption, first image, clip; and caption, first
                        half, second half; for the splits with clips;
  first/<id>.png        the first frames of the clips.

An edit changes one thing: the skin tone of an emoji, the person in it, or, in a corpus of several
styles, its style. All pairs of images that differ in tone or person alone are taken, in both
directions; of those that differ in style one for each target. An edit belongs to the split of its
target. Its source is of the same split or of training, so that no image that is held out occurs in
training, neither as target nor as source. Of several phrasings one is drawn from the ids, so that
the files are always the same.
"""

import collections
import json
import os
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from absl import flags

from emu3_jax import command_line
from emu3_jax.data import media
from emu3_jax.data.fluent_emoji import TONES, read_split, splits_of
from emu3_jax.data.questions.chats import write_rows

# Of one emoji, so that "turn the man into a woman" is all that there is to say.
PERSONS = ("man", "woman", "person", "boy", "girl")
TONE = ("Make the skin tone {}.", "Change the skin tone to {}.", "Give it a {} skin tone.")
# The yellow of emoji without a tone.
NO_TONE = ("Remove the skin tone.", "Make the skin yellow.")
PERSON = ("Turn the {} into a {}.", "Replace the {} with a {}.")
STYLE = ("Draw it in {} style.", "Change the style to {}.", "The same in {} style.")


def edits(stills: Iterable[dict], split: str) -> list[dict]:
    """The edits of a split, sorted by target.

    Args:
      stills: rows of `<split>.jsonl` of all splits, each with its "split"; clips are left out.
      split: one of `splits_of` the corpus.

    Returns:
      Rows {"id", "source", "instruction", "target", "kind"}; the kind is "tone", "person" or
      "style".
    """
    rows = sorted((row for row in stills if "image" in row), key=lambda row: row["id"])
    by_name = {(_style(row), row["base"], row["tone"]): row for row in rows}
    by_tone, by_style = collections.defaultdict(list), collections.defaultdict(list)
    for row in rows:
        by_tone[_style(row), row["base"]].append(row)
        by_style[row["base"], row["tone"]].append(row)
    made = []
    for target in (row for row in rows if row["split"] == split):
        style, tone = _style(target), target["tone"]
        others = [
            (other, "tone") for other in by_tone[style, target["base"]] if other is not target
        ]
        others += [
            (by_name[style, name, tone], "person")
            for name in _other_persons(target["base"])
            if (style, name, tone) in by_name
        ]
        styles = [
            (other, "style")
            for other in by_style[target["base"], tone]
            if _style(other) != style and other["split"] in (split, "train")
        ]
        # Twelve pairs of each would be most of the corpus.
        others += random.Random(target["id"]).sample(styles, min(1, len(styles)))
        made += [
            {
                "id": f"{source['id']}>{target['id']}",
                "source": source["image"],
                "instruction": instruction(source, target, kind),
                "target": target["image"],
                "kind": kind,
            }
            for source, kind in others
            if source["split"] in (split, "train")
        ]
    return made


def _style(row: dict) -> str | None:
    """The style of a row; None in a corpus of one style."""
    return row.get("style")


def instruction(source: dict, target: dict, kind: str) -> str:
    """What turns the first of two rows into the second; `kind` is as in `edits`."""
    draw = random.Random(f"{source['id']} {target['id']}")
    if kind == "style":
        return draw.choice(STYLE).format(target["style"])
    if kind == "person":
        return draw.choice(PERSON).format(_person(source["base"]), _person(target["base"]))
    if not target["tone"]:
        return draw.choice(NO_TONE)
    return draw.choice(TONE).format(TONES[target["tone"] - 1])


def _person(base: str) -> str:
    """The one person in the name of an emoji; "" if there is none, or more."""
    found = re.findall(rf"\b({'|'.join(PERSONS)})\b", base)
    return found[0] if len(found) == 1 else ""


def _other_persons(base: str) -> Iterator[str]:
    """The name with each other person in place of its own."""
    if person := _person(base):
        for other in PERSONS:
            if other != person:
                yield re.sub(rf"\b{person}\b", other, base)


def clip_documents(row: dict, first: str) -> list[dict]:
    """The two documents of a clip: a row of `<split>.jsonl`, and the path of its first image."""
    caption = {"text": row["text"], "loss": False}
    clip = {"video": row["video"]}
    begun = [caption, {"image": first, "loss": False}, clip]
    cut = [caption, clip | {"context": row["seconds"] / 2}]
    return [
        {"id": f"{row['id']}-image", "kind": "image to video", "segments": begun},
        {"id": f"{row['id']}-half", "kind": "continuation", "segments": cut},
    ]


def write_documents(corpus: str | os.PathLike) -> dict[str, int]:
    """Writes all files; returns the number of rows by file stem.

    Args:
      corpus: the unpacked corpus (`emu3_jax.data.fluent_emoji`); the files are written into it.

    Raises:
      ValueError: there is no such corpus.
    """
    corpus = Path(corpus)
    splits = splits_of(corpus)
    rows = [row | {"split": split} for split in splits for row in read_split(corpus, split)]
    written = {f"edits_{split}": edits(rows, split) for split in splits}
    (corpus / "first").mkdir(exist_ok=True)
    for row in (row for row in rows if "video" in row):
        first = f"first/{row['id']}.png"
        frames, _, _ = media.read_video(corpus / row["video"], max_frames=1)
        media.write_png(corpus / first, frames[0])
        written.setdefault(f"videos_{row['split']}", []).extend(clip_documents(row, first))
    for name, documents in written.items():
        write_rows(corpus / f"{name}.jsonl", documents)
    return {name: len(documents) for name, documents in written.items()}


def _main() -> None:
    print(json.dumps(write_documents(flags.FLAGS.corpus)))


if __name__ == "__main__":
    flags.DEFINE_string("corpus", "runs/emoji", "The unpacked corpus.")
    command_line.run(_main, __doc__)
