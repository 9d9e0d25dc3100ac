r"""Recall of held-out images by the same thing in another style, as a measure for drawn images.

  PYTHONPATH=. python benchmarks/data/recall_across_styles.py --data=runs/styles/corpus

A training image of the same thing and tone, but of another style, stands in for what a model would
draw (`emoji_retrieval`). The mean is over the held-out images, of each over its training images.
"""

import argparse
import collections
import pathlib

import numpy as np

from emu3_jax.evaluate import items
from emu3_jax.evaluate.emoji.retrieval import RECALLS, features, ranks_of_right


def main() -> None:
    """Reads the options and prints the recalls."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="corpus of several styles")
    parser.add_argument("--split", default="validation_style", help="(%(default)s)")
    given = parser.parse_args()
    held_out = items.Reader().read_images(given.data, given.split)
    same = collections.defaultdict(list)
    for item in items.Reader().read_images(given.data, "train"):
        same[_thing(item)].append(item.pixels)
    counts = [len(same[_thing(item)]) for item in held_out]
    right = np.repeat(np.arange(len(held_out)), counts)
    queries = features([pixels for item in held_out for pixels in same[_thing(item)]])
    styles = [item.attributes["style"] for item in held_out]
    gallery = features([item.pixels for item in held_out])
    ranks = ranks_of_right(queries, gallery, styles, right)
    weights = np.repeat(1 / np.maximum(counts, 1), counts)
    print(f"{np.count_nonzero(counts)} of {len(held_out)} images, {len(ranks)} stand-ins")
    for k in RECALLS:
        print(f"recall at {k}: {100 * np.average(ranks <= k, weights=weights):.1f} %")


def _thing(item: items.Item) -> tuple[str, int | None]:
    return item.attributes["base"], item.attributes["tone"]


if __name__ == "__main__":
    main()
