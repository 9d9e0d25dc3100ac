"""A folder with a jsonl file: one row per example, media files beside it."""

import os
from collections.abc import Iterator
from pathlib import Path

from emu3_jax.data.sources.caption_values import caption_of, caption_text, is_missing
from emu3_jax.data.sources.naming import check_layout, found
from emu3_jax.data.sources.row_files import Row, open_rows
from emu3_jax.data.sources.source import MEDIA, RawItem, SourceError, one_medium, parts_of
from emu3_jax.files import inside


class FolderSource:
    """A folder and a jsonl file in it.

    A row is {"id", "text", "image" or "video" or neither, …}; with "segments" or "turns" instead,
    it is a document or a chat (see `RawItem`). Media paths are relative to the folder of the jsonl
    file. Every other key becomes an attribute; one of `caption_values.CAPTION_KEYS` is also the
    text of a row without "text". A shard has `items_per_shard` rows.
    """

    def __init__(self, jsonl: str | os.PathLike, items_per_shard: int = 512):
        self.path = Path(jsonl)
        self.name = self.path.stem
        self._file = open_rows(self.path, items_per_shard)

    def __len__(self) -> int:
        return self._file.num_rows

    @property
    def num_shards(self) -> int:
        """Rows over rows per shard, rounded up."""
        return self._file.num_shards

    def items(self, shard: int) -> Iterator[RawItem]:
        """The rows of one shard, with the paths of media files, which are not opened."""
        return map(self._item, self._file.rows(shard))

    def listed(self, shard: int) -> Iterator[RawItem]:
        """The same rows: their media are paths."""
        return self.items(shard)

    def _item(self, found_row: Row) -> RawItem:
        where, row, problem = found_row
        if problem:
            return RawItem(where, where=where, problem=problem)
        if not isinstance(row, dict) or "id" not in row:
            given = found(row) if isinstance(row, dict) else f"found a {type(row).__name__}"
            problem = f'expected an object with the keys "id" and "text", {given}'
            return RawItem(where, where=where, problem=problem)
        key = row.pop("id")
        if isinstance(key, bool) or not isinstance(key, str | int | float) or is_missing(key):
            problem = f'"id" must be a string or a number, found {key!r}'
            return RawItem(where, where=where, problem=problem)
        key = str(key)
        try:
            fields = self._fields(row)
        except ValueError as error:
            return RawItem(key, where=where, problem=str(error))
        return RawItem(key, **fields, attributes=row, where=where)

    def _fields(self, row: dict) -> dict:
        """Removes the fields of RawItem from the row and returns them; a thumbnail stays in it."""
        keys = ["id", *row]
        fields = {"text": caption_text(row.pop("text", None))}
        shown = {kind: row.pop(kind, None) for kind in MEDIA}
        shown = {kind: value for kind, value in shown.items() if value is not None}
        chosen = one_medium(shown)
        row |= {kind: value for kind, value in shown.items() if kind not in chosen}
        fields |= self._media(chosen)
        for name in ("segments", "turns"):
            parts = [] if row.get(name) is None else row[name]
            row.pop(name, None)
            if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
                raise SourceError(f'"{name}" must be a list of objects, found {parts!r}')
            fields[name] = tuple(self._part(part) for part in parts)
        given = [name for name, value in fields.items() if value]
        whole = next((name for name in ("turns", "segments") if fields[name]), None)
        if whole and len(given) > 1:
            raise SourceError(f'expected "{whole}" alone, found {", ".join(given)}')
        if not given or given == [*chosen]:
            fields["text"] = caption_of(row)
        parts = parts_of(RawItem("", segments=fields["segments"], turns=fields["turns"]))
        has_medium = any(part.get(kind) for part in (fields, *parts) for kind in MEDIA)
        check_layout(row, keys, has_text=bool(whole or fields["text"]), has_medium=has_medium)
        return fields

    def _part(self, part: dict) -> dict:
        """A segment or a turn with the paths of its media; also of those within a turn."""
        part = {**part, **self._media(part)}
        for name in ("question", "answer"):
            said = part.get(name)
            if isinstance(said, list):
                if not all(isinstance(one, dict) for one in said):
                    raise SourceError(f'"{name}" must be a text or a list of objects, found {said}')
                part[name] = [{**one, **self._media(one)} for one in said]
        return part

    def _media(self, values: dict) -> dict:
        found = {kind: values[kind] for kind in MEDIA if values.get(kind) is not None}
        if len(found) > 1:
            raise SourceError('expected either "image" or "video", found both')
        for kind, path in found.items():
            if not isinstance(path, str) or not path:
                raise SourceError(f'"{kind}" must be a path, found {path!r}')
            found[kind] = str(inside(self.path.parent, path))
        return found
