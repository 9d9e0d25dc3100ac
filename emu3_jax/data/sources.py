"""Raw corpora in the layouts people have: a folder with jsonl files, WebDataset tars, TFDS.

All three answer with the same `RawItem`s, a shard at a time, in an order that never changes.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np


class SourceError(ValueError):
    """A corpus that cannot be read; the sentence names the file and what was expected."""


@dataclass(frozen=True)
class RawItem:
    """One example as found, of one of five kinds.

    A caption with at most one of `image` and `video` (a path, the file's bytes, or uint8 pixels);
    or `segments`, an interleaved document; or `turns`, a chat. A segment is {"text"}, {"image"} or
    {"video"}; a turn is {"question", "answer"} with "image" or "video" if it shows something.
    """

    key: str
    text: str = ""
    image: str | bytes | np.ndarray | None = None
    video: str | bytes | np.ndarray | None = None
    segments: tuple[dict, ...] = ()
    turns: tuple[dict, ...] = ()
    attributes: dict = field(default_factory=dict)
    # Frames a second of a `video` that is pixels; 0 where the corpus does not say.
    fps: float = 0.0
    # What messages call the item: file and line, or tar and member.
    where: str = ""
    # Why the source could not make an item of what it found; "" where it could.
    problem: str = ""

    @property
    def kind(self) -> str:
        """One of `records.KINDS`."""
        if self.turns:
            return "chat"
        if self.segments:
            return "document"
        return (
            "text"
            if self.image is None and self.video is None
            else ("video" if self.image is None else "image")
        )


class Source(Protocol):
    """A corpus cut into shards."""

    name: str

    @property
    def num_shards(self) -> int:
        """How many shards there are (at least one)."""

    def items(self, shard: int) -> Iterator[RawItem]:
        """The items of one shard, in the same order at every call.

        SourceError, after the items before it, where the rest of the shard cannot be read.
        """


def open_source(spec: str, root: str | os.PathLike = ".", items_per_shard: int = 512) -> Source:
    """The source a string names: a jsonl file, "webdataset:PATTERN" or "tfds:NAME:SPLIT".

    Paths are relative to `root`. PATTERN is a glob or holds one range {000..123}. SourceError for
    what does not exist, is empty, or is no such string.
    """
    kind, _, rest = spec.partition(":")
    if kind == "webdataset" and rest:
        from emu3_jax.data.webdataset import WebDatasetSource

        return WebDatasetSource(str(Path(root) / rest))
    if kind == "tfds" and rest:
        from emu3_jax.data.tfds_source import TfdsSource

        name, _, split = rest.partition(":")
        return TfdsSource(name, split or "train", items_per_shard)
    if spec.endswith(".jsonl"):
        return FolderSource(Path(root) / spec, items_per_shard)
    raise SourceError(
        f'{spec!r} names no corpus; expected PATH.jsonl, "webdataset:PATTERN" or "tfds:NAME:SPLIT"'
    )


class FolderSource:
    """A folder and a jsonl file in it.

    A row is {"id", "text", "image" or "video" or neither, …}; "segments" or "turns" instead of
    these make a document or a chat (see `RawItem`). Media paths are relative to the folder of the
    jsonl file, every other key becomes an attribute. `items_per_shard` rows make one shard.
    """

    def __init__(self, jsonl: str | os.PathLike, items_per_shard: int = 512):
        self.path = Path(jsonl)
        self.name = self.path.stem
        self._per_shard = items_per_shard
        # Line number and byte offset where each shard begins: a corpus of any length stays on disk.
        self._starts: list[tuple[int, int]] = []
        self._rows = 0
        offset = 0
        try:
            with open(self.path, "rb") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        if self._rows % items_per_shard == 0:
                            self._starts.append((number, offset))
                        self._rows += 1
                    offset += len(line)
        except OSError as error:
            raise SourceError(f"{self.path}: cannot be read ({error.strerror})") from error
        if not self._rows:
            raise SourceError(f"{self.path}: the corpus is empty; expected one JSON row a line")

    def __len__(self) -> int:
        return self._rows

    @property
    def num_shards(self) -> int:
        """Rows over rows per shard, rounded up."""
        return len(self._starts)

    def items(self, shard: int) -> Iterator[RawItem]:
        """The rows of one shard; media files are named and not opened."""
        number, offset = self._starts[shard]
        left = self._per_shard
        with open(self.path, "rb") as lines:
            lines.seek(offset)
            for at, line in enumerate(lines, number):
                if line.strip():
                    yield self._item(at, line)
                    left -= 1
                    if not left:
                        return

    def _item(self, number: int, line: bytes) -> RawItem:
        where = f"{self.path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # the latter: brackets thousands deep
            return RawItem(where, where=where, problem=f"not a JSON row ({error})")
        if not isinstance(row, dict) or "id" not in row:
            problem = 'expected an object with the keys "id" and "text"'
            return RawItem(where, where=where, problem=problem)
        key = str(row.pop("id"))
        try:
            fields = self._fields(row)
        except SourceError as error:
            return RawItem(key, where=where, problem=str(error))
        return RawItem(key, **fields, attributes=row, where=where)

    def _fields(self, row: dict) -> dict:
        """Takes the keys that RawItem knows out of the row."""
        fields = {"text": row.pop("text", None) or ""}
        if not isinstance(fields["text"], str):
            raise SourceError(f'"text" must be a string, found {fields["text"]!r}')
        fields |= self._media({kind: row.pop(kind, None) for kind in ("image", "video")})
        for name in ("segments", "turns"):
            parts = row.pop(name, None) or []
            if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
                raise SourceError(f'"{name}" must be a list of objects, found {parts!r}')
            fields[name] = tuple({**part, **self._media(part)} for part in parts)
        return fields

    def _media(self, values: dict) -> dict:
        found = {kind: values[kind] for kind in ("image", "video") if values.get(kind)}
        if len(found) > 1:
            raise SourceError('expected either "image" or "video", found both')
        for kind, path in found.items():
            if not isinstance(path, str):
                raise SourceError(f'"{kind}" must be a path, found {path!r}')
            found[kind] = str(self.path.parent / path)
        return found
