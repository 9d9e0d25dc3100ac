"""A part of the embedded corpus, for tests of whole pipelines."""

import json
import zipfile

from paths import ROOT


def write_small_corpus(path):
    """A part of the embedded corpus: a few rows of each split, toned, plain and moving."""
    with zipfile.ZipFile(ROOT / "assets/fluent_emoji.zip") as whole:
        rows = [json.loads(line) for line in whole.read("captions.jsonl").splitlines()]
        kept = []
        for split in ("train", "validation", "validation_combination"):
            here = [row for row in rows if row["split"] == split]
            kept += [row for row in here if row["clip"]][:2]
            kept += [row for row in here if row["tone"] and not row["clip"]][:3]
        with zipfile.ZipFile(path, "w") as part:
            part.writestr("captions.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
            for file in [row[kind] for row in kept for kind in ("still", "clip") if row[kind]]:
                part.writestr(file, whole.read(file))
