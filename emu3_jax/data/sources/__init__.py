"""Raw corpora: jsonl files, WebDataset tars, TFDS, and the layouts of other projects."""

import os
from pathlib import Path

from emu3_jax.data.sources.folder import FolderSource
from emu3_jax.data.sources.layouts import READERS, open_layout
from emu3_jax.data.sources.source import MEDIA, RawItem, Source, SourceError, Stored

__all__ = ["MEDIA", "FolderSource", "RawItem", "Source", "SourceError", "Stored", "open_source"]


def open_source(spec: str, root: str | os.PathLike = ".", items_per_shard: int = 512) -> Source:
    """The source of "PATH.jsonl", "webdataset:PATTERN", "tfds:NAME:SPLIT" or "KIND:FILE".

    Paths are relative to `root`. PATTERN is a glob or contains one range {000..123}. "#FEATURE"
    after the split names the feature that is the text. The KINDs, layouts of other projects,
    are `layouts.READERS`. Raises SourceError for a corpus that does
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
    if kind in READERS and rest:
        return open_layout(kind, rest, Path(root), items_per_shard)
    if spec.endswith(".jsonl"):
        return FolderSource(Path(root) / spec, items_per_shard)
    raise SourceError(
        f'{spec!r} is not a corpus; expected PATH.jsonl, "webdataset:PATTERN", "tfds:NAME:SPLIT" '
        f'or "KIND:FILE" with a KIND of {", ".join(READERS)}'
    )
