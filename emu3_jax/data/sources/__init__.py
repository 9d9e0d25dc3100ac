"""Raw corpora: a folder with jsonl files, WebDataset tars, or TFDS."""

import os
from pathlib import Path

from emu3_jax.data.sources.folder import FolderSource
from emu3_jax.data.sources.source import RawItem, Source, SourceError

__all__ = ["FolderSource", "RawItem", "Source", "SourceError", "open_source"]


def open_source(spec: str, root: str | os.PathLike = ".", items_per_shard: int = 512) -> Source:
    """The source a string names: a jsonl file, "webdataset:PATTERN" or "tfds:NAME:SPLIT".

    Paths are relative to `root`. PATTERN is a glob or contains one range {000..123}. Raises
    SourceError for a corpus that does not exist or is empty, and for any other string.
    """
    kind, _, rest = spec.partition(":")
    if kind == "webdataset" and rest:
        from emu3_jax.data.sources.webdataset import WebDatasetSource

        return WebDatasetSource(str(Path(root) / rest))
    if kind == "tfds" and rest:
        from emu3_jax.data.sources.tfds import TfdsSource

        name, _, split = rest.partition(":")
        return TfdsSource(name, split or "train", items_per_shard)
    if spec.endswith(".jsonl"):
        return FolderSource(Path(root) / spec, items_per_shard)
    raise SourceError(
        f'{spec!r} is not a corpus; expected PATH.jsonl, "webdataset:PATTERN" or "tfds:NAME:SPLIT"'
    )
