"""Captions without an image, to draw candidates for: those of the emoji, recombined.

  python -m emu3_jax.data.emoji_prompts --corpus=runs/emoji --output=runs/prompts.txt

A training caption with another person ("woman singer" for "man singer") or another tone of skin.
The images of training captions are known by heart, so candidates for them hardly differ; for these
they do. No caption of any split is among them, above all none that is held out. The order is that
of a seed, so that any number of the first lines is a fair sample.
"""

import argparse
import json
import os
import random
import re
from collections.abc import Iterable
from pathlib import Path

from emu3_jax.data.fluent_emoji import SPLITS
from emu3_jax.evaluate.emoji.names import TONES
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
    corpus, captions = Path(corpus), {}
    for split in SPLITS:
        file = corpus / f"{split}.jsonl"
        if not file.is_file():
            raise ValueError(
                f"{corpus} is not the unpacked corpus; python -m emu3_jax.data.fluent_emoji makes "
                "it"
            )
        captions[split] = {
            json.loads(line)["text"] for line in file.read_text("utf-8").splitlines()
        }
    held_out = set().union(*captions.values()) - captions["train"]
    prompts = [one for one in recombined(captions["train"]) if one not in held_out]
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(output), ("\n".join(prompts) + "\n").encode())
    return len(prompts)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m emu3_jax.data.emoji_prompts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--corpus", default="runs/emoji", help="the unpacked corpus (%(default)s)")
    parser.add_argument("--output", default="runs/prompts.txt", help="the file (%(default)s)")
    arguments = parser.parse_args()
    try:
        print(f"{arguments.output}: {write_prompts(arguments.corpus, arguments.output)} prompts")
    except ValueError as error:
        parser.exit(2, f"Error: {error}\n")


if __name__ == "__main__":
    main()
