"""A corpus like the embedded one, of a few items."""

import json

from emu3_jax.data import fluent_emoji


def small_zip(path):
    """The embedded corpus, cut down to a few of its rows."""
    import zipfile

    with zipfile.ZipFile(fluent_emoji.EMBEDDED) as full, zipfile.ZipFile(path, "w") as small:
        rows = [json.loads(line) for line in full.read("captions.jsonl").splitlines()]
        kept = [next(row for row in rows if row["split"] == s) for s in fluent_emoji.SPLITS]
        kept += [row for row in rows if row["clip"]][:2]
        small.writestr("captions.jsonl", "\n".join(json.dumps(row) for row in kept))
        for row in kept:
            for name in filter(None, (row["still"], row["clip"])):
                small.writestr(name, full.read(name))
    return kept
