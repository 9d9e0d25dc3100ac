"""A corpus of rows that a reader turns into chats or documents; what it cannot is a problem."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from emu3_jax.data.sources.layouts.rows import Rows
from emu3_jax.data.sources.source import RawItem, SourceError
from emu3_jax.files import inside

# (row, folder of its media) -> fields of a `RawItem`; takes out of the row what is no attribute.
Reader = Callable[[dict, Path], dict]


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows to read of a file, by number, rising; their media are relative to `folder`."""

    rows: Rows
    numbers: Sequence[int]
    folder: Path


class RowSource:
    """Tables one after the other, each in shards of `items_per_shard` rows."""

    def __init__(self, name: str, tables: Sequence[Table], read: Reader, items_per_shard: int):
        self.name, self._read = name, read
        self._shards = [
            dataclasses.replace(table, numbers=table.numbers[start : start + items_per_shard])
            for table in tables
            for start in range(0, len(table.numbers), items_per_shard)
        ]

    @property
    def num_shards(self) -> int:
        """Of each table the rows over rows per shard, rounded up."""
        return len(self._shards)

    def items(self, shard: int) -> Iterator[RawItem]:
        """The rows of one shard; media are paths, or bytes where the row holds them."""
        table = self._shards[shard]
        found = table.rows.read(table.numbers)
        for number, (row, problem) in zip(table.numbers, found, strict=True):
            name = f"{table.rows.path.name}[{number}]"
            where = str(table.rows.path.with_name(name))
            try:
                if problem:
                    raise SourceError(problem)
                yield self._item(row, name, where, table.folder)
            except ValueError as error:
                yield RawItem(_key(row, name), where=where, problem=str(error))

    def listed(self, shard: int) -> Iterator[RawItem]:
        """The same rows."""
        return self.items(shard)

    def _item(self, row: object, name: str, where: str, folder: Path) -> RawItem:
        if not isinstance(row, dict):
            raise SourceError(f"expected an object, found a {type(row).__name__}")
        row = {name: value for name, value in row.items() if value is not None}
        key = _key(row, name)
        row.pop("id", None)
        fields = self._read(row, folder)
        plain = {name: value for name, value in row.items() if _is_plain(value)}
        return RawItem(key, **fields, attributes=plain, where=where)


def _key(row: object, name: str) -> str:
    """The row's id; `name`, if it has none."""
    key = row.get("id") if isinstance(row, dict) else None
    return str(key) if isinstance(key, str | int) and not isinstance(key, bool) else name


def _is_plain(value: Any) -> bool:
    """Whether JSON could hold it: parquet has times, decimals and images too."""
    if isinstance(value, list | dict):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, str | int | float)


def media_of(row: dict, kind: str, folder: Path) -> list[str | bytes]:
    """Takes the media out of row[kind], one or a list: paths in the folder, or bytes.

    SourceError or ValueError for anything else, and for a path to somewhere else.
    """
    given = row.pop(kind)
    return [_medium(one, kind, folder) for one in (given if isinstance(given, list) else [given])]


def _medium(value: Any, kind: str, folder: Path) -> str | bytes:
    if isinstance(value, dict):  # the datasets library's Image
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value:
        raise SourceError(f'"{kind}" must be a path, found {value!r}')
    return str(inside(folder, value))
