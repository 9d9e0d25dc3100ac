"""Raw corpora: jsonl files, WebDataset tars, TFDS, preferences, and layouts of other projects."""

import os
from pathlib import Path

from emu3_jax.data.sources.continuation import ContinuationSource
from emu3_jax.data.sources.folder import FolderSource
from emu3_jax.data.sources.layouts import READERS, open_layout
from emu3_jax.data.sources.source import MEDIA, RawItem, Source, SourceError, Stored

__all__ = ["MEDIA", "FolderSource", "RawItem", "Source", "SourceError", "Stored", "open_source"]


def open_source(spec: str, root: str | os.PathLike = ".", items_per_shard: int = 512) -> Source:
    """The source that a string names.

    "PATH.jsonl", "webdataset:PATTERN" (a glob, or with one range {000..123}), "tfds:NAME:SPLIT"
    ("#FEATURE" behind it names the feature that is the text), "preferences:PATTERN" ("#all" behind
    it takes all pairs of a ranking instead of the best and the worst image), "KIND:FILE" in the
    layout of another project (`layouts.READERS`), or "continuation:SECONDS:SOURCE", which cuts the
    clips of another source. Paths are relative to `root`. Raises SourceError for a corpus that does
    not exist or is empty, and for any other string.
    """
    kind, _, rest = spec.partition(":")
    if kind == "webdataset" and rest:
        from emu3_jax.data.sources.webdataset import WebDatasetSource

        return WebDatasetSource(str(Path(root) / rest))
    if kind == "tfds" and rest:
        from emu3_jax.data.sources.tfds import TfdsSource

        rest, _, text = rest.partition("#")
        name, _, split = rest.partition(":")
        return TfdsSource(name, split or "train", items_per_shard, text)
    if kind == "preferences" and rest:
        from emu3_jax.data.sources.preferences import PreferenceSource

        pattern, _, pairs = rest.partition("#")
        return PreferenceSource(str(Path(root) / pattern), pairs or "best_worst", items_per_shard)
    if kind == "continuation" and rest:
        seconds, _, clips = rest.partition(":")
        try:
            context = float(seconds)
        except ValueError as error:
            raise SourceError(f'{spec!r}: expected "continuation:SECONDS:SOURCE"') from error
        return ContinuationSource(context, open_source(clips, root, items_per_shard))
    if kind in READERS and rest:
        return open_layout(kind, rest, Path(root), items_per_shard)
    if spec.endswith(".jsonl"):
        return FolderSource(Path(root) / spec, items_per_shard)
    raise SourceError(
        f'{spec!r} is not a corpus; expected PATH.jsonl, "webdataset:PATTERN", "tfds:NAME:SPLIT" '
        f'"preferences:PATTERN" or "KIND:FILE" with a KIND of {", ".join(READERS)}'
    )
