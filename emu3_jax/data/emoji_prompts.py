"""Captions without an image, to draw candidates for: those of the emoji, recombined.

  python -m emu3_jax.data.emoji_prompts --corpus=runs/emoji --output=runs/prompts.txt

A training caption with another person ("woman singer" for "man singer") or another tone of skin.
A model that was trained on the corpus knows the images of its captions by heart; here it has to
combine. No caption of any split is among them, above all none that is held out. The order is that
of a seed, so that any number of the first lines is a fair sample.
"""

import os
import random
import re
from collections.abc import Iterable
from pathlib import Path

from absl import flags

from emu3_jax import command_line
from emu3_jax.data.emoji_styles import split_style
from emu3_jax.data.fluent_emoji import TONES, read_split, splits_of
from emu3_jax.files import write_atomically

PERSONS = ("man", "woman", "person", "boy", "girl", "men", "women", "people")
# The longest first, or "medium-light" would be read as "light".
_TONE = re.compile(rf"({'|'.join(sorted(TONES, key=len, reverse=True))}) skin tone")


def recombined(captions: Iterable[str], seed: int = 0) -> list[str]:
    """The captions with other persons and tones, without those given, in the order of a seed."""
    captions = set(captions)
    made = set(captions)
    for caption in captions:
        for person in PERSONS:
            pattern = re.compile(rf"\b{person}\b")
            if pattern.search(caption):
                made |= {pattern.sub(other, caption) for other in PERSONS}
    for caption in list(made):
        if found := _TONE.search(caption):
            made |= {caption.replace(found[0], f"{tone} skin tone") for tone in TONES}
    chosen = sorted(made - captions)
    random.Random(seed).shuffle(chosen)
    return chosen


def write_prompts(corpus: str | os.PathLike, output: str | os.PathLike) -> int:
    """Writes a prompt a line; returns their number.

    ValueError if there is no unpacked corpus (`emu3_jax.data.fluent_emoji`) at `corpus`.
    """
    texts = {
        split: [row["text"] for row in read_split(corpus, split)] for split in splits_of(corpus)
    }
    # A 3D caption may name its style or not: it is the same one.
    known = {split_style(text) for of_split in texts.values() for text in of_split}
    prompts = [one for one in recombined(texts["train"]) if split_style(one) not in known]
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(output), ("\n".join(prompts) + "\n").encode())
    return len(prompts)


def _main() -> None:
    output = flags.FLAGS.output
    print(f"{output}: {write_prompts(flags.FLAGS.corpus, output)} prompts")


if __name__ == "__main__":
    flags.DEFINE_string("corpus", "runs/emoji", "The unpacked corpus.")
    flags.DEFINE_string("output", "runs/prompts.txt", "The file to write.")
    command_line.run(_main, __doc__)
