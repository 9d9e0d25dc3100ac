r"""Recall of held-out captions of concepts without skin tones, and of all others.

  PYTHONPATH=. python benchmarks/data/recall_of_things.py --data=runs/styles/corpus \
      --ranks=runs/styles/evaluation/validation_style/emoji_retrieval_ranks.csv

Reads the ranks that `emoji_retrieval` wrote. A concept without tones is one of which training shows
none with a tone, as in train_things.jsonl.
"""

import argparse
import csv
import pathlib

import numpy as np

from emu3_jax.data.fluent_emoji import read_split
from emu3_jax.evaluate.emoji.retrieval import recall_metrics


def main() -> None:
    """Reads the options and prints a line for each of the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="corpus of several styles")
    parser.add_argument("--ranks", type=pathlib.Path, required=True, help="of emoji_retrieval")
    given = parser.parse_args()
    toned = {row["base"] for row in read_split(given.data, "train") if row["tone"]}
    with given.ranks.open() as file:
        rows = list(csv.DictReader(file))
    splits = {row["split"] for row in rows}
    known = {row["id"]: row for split in splits for row in read_split(given.data, split)}
    kinds = {"without tones": [], "others": []}
    for row in rows:
        still = known[row["id"]]
        has_tone = still["tone"] or still["base"] in toned
        kinds["others" if has_tone else "without tones"].append(int(row["rank"]))
    for name, ranks in kinds.items():
        found = recall_metrics(np.array(ranks))
        print(
            f"{name}: {len(ranks)} captions, recall at 1 {found['recall_at_1']:.1f} %, "
            f"at 10 {found['recall_at_10']:.1f} %"
        )


if __name__ == "__main__":
    main()
