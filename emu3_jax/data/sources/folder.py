"""A folder with a jsonl file: one row per example, media files beside it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from emu3_jax.data.sources.source import RawItem, SourceError
from emu3_jax.files import inside


class FolderSource:
    """A folder and a jsonl file in it.

    A row is {"id", "text", "image" or "video" or neither, …}; with "segments" or "turns" instead,
    it is a document or a chat (see `RawItem`). Media paths are relative to the folder of the jsonl
    file. Every other key becomes an attribute. A shard has `items_per_shard` rows.
    """

    def __init__(self, jsonl: str | os.PathLike, items_per_shard: int = 512):
        self.path = Path(jsonl)
        self.name = self.path.stem
        self._per_shard = items_per_shard
        # Line number and byte offset of each shard: a corpus of any length stays on disk.
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
            raise SourceError(f"{self.path}: the corpus is empty; expected one JSON row per line")

    def __len__(self) -> int:
        return self._rows

    @property
    def num_shards(self) -> int:
        """Rows over rows per shard, rounded up."""
        return len(self._starts)

    def items(self, shard: int) -> Iterator[RawItem]:
        """The rows of one shard, with the paths of media files, which are not opened."""
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
        except (ValueError, RecursionError) as error:  # RecursionError: brackets thousands deep
            return RawItem(where, where=where, problem=f"not a JSON row ({error})")
        if not isinstance(row, dict) or "id" not in row:
            problem = 'expected an object with the keys "id" and "text"'
            return RawItem(where, where=where, problem=problem)
        key = str(row.pop("id"))
        try:
            fields = self._fields(row)
        except ValueError as error:
            return RawItem(key, where=where, problem=str(error))
        return RawItem(key, **fields, attributes=row, where=where)

    def _fields(self, row: dict) -> dict:
        """Removes the fields of RawItem from the row and returns them."""
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
            found[kind] = str(inside(self.path.parent, path))
        return found
