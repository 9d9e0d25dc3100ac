"""Files of rows, cut into shards: jsonl, json (a list of objects) and parquet."""

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from emu3_jax.data.sources.source import SourceError
from emu3_jax.files import MAX_TEXT_BYTES, lines_within
from emu3_jax.foreign import failures_as, optional

ENDINGS = (".jsonl", ".json", ".parquet")
# Rows of a parquet file that are held at once; they may have images in them.
PARQUET_BATCH = 32


class Row(NamedTuple):
    """One row: where it stands, its value, and why it cannot be read ("" if it can)."""

    where: str
    value: Any = None
    problem: str = ""


class RowFile(Protocol):
    """A file of rows, `rows_per_shard` in each shard but the last."""

    num_rows: int
    num_shards: int

    def rows(self, shard: int) -> Iterator[Row]:
        """The rows of one shard, in the same order at every call."""


def open_rows(path: str | os.PathLike, rows_per_shard: int) -> RowFile:
    """The rows of a file by its ending; SourceError if it cannot be read or has none."""
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise SourceError(f"{path}: expected a file {', '.join(ENDINGS)}")
    kind = {".jsonl": JsonLines, ".json": JsonList, ".parquet": Parquet}[path.suffix]
    try:
        found = kind(path, rows_per_shard)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not found.num_rows:
        raise SourceError(f"{path}: the corpus is empty; {kind.expected}")
    return found


class JsonLines:
    """One JSON value a line; a corpus of any length stays on disk."""

    expected = "expected one JSON row per line"

    def __init__(self, path: Path, rows_per_shard: int):
        self.path, self._per_shard = path, rows_per_shard
        # Line number and byte offset of each shard.
        self._starts: list[tuple[int, int]] = []
        self.num_rows = 0
        offset = 0
        with open(path, "rb") as lines:
            for number, (line, length) in enumerate(lines_within(lines, MAX_TEXT_BYTES), 1):
                if line is None or line.strip():
                    if self.num_rows % rows_per_shard == 0:
                        self._starts.append((number, offset))
                    self.num_rows += 1
                offset += length

    @property
    def num_shards(self) -> int:
        """Rows over rows per shard, rounded up."""
        return len(self._starts)

    def rows(self, shard: int) -> Iterator[Row]:
        """See `RowFile`; a line that is too long or no JSON is a row with a problem."""
        number, offset = self._starts[shard]
        with open(self.path, "rb") as lines:
            lines.seek(offset)
            numbered = enumerate(lines_within(lines, MAX_TEXT_BYTES), number)
            filled = ((at, *one) for at, one in numbered if one[0] is None or one[0].strip())
            for at, line, length in itertools.islice(filled, self._per_shard):
                yield _parsed(f"{self.path}:{at}", line, length)


def _parsed(where: str, line: bytes | None, length: int) -> Row:
    if line is None:
        return Row(where, problem=f"a row of {length} bytes, at most {MAX_TEXT_BYTES} are read")
    try:
        return Row(where, json.loads(line))
    except (ValueError, RecursionError) as error:  # RecursionError: brackets thousands deep
        return Row(where, problem=f"not a JSON row, expected one object per line ({error})")


class JsonList:
    """A list of JSON values; held whole."""

    expected = "expected a list of objects"

    def __init__(self, path: Path, rows_per_shard: int):
        self.path, self._per_shard = path, rows_per_shard
        try:
            self._values = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{path}: is not JSON, {self.expected} ({error})") from error
        if not isinstance(self._values, list):
            found = type(self._values).__name__
            raise SourceError(f"{path}: holds a {found}, {self.expected}")
        self.num_rows = len(self._values)

    @property
    def num_shards(self) -> int:
        """Rows over rows per shard, rounded up."""
        return -(-self.num_rows // self._per_shard)

    def rows(self, shard: int) -> Iterator[Row]:
        """See `RowFile`; rows count from 0."""
        first = shard * self._per_shard
        for at, value in enumerate(self._values[first : first + self._per_shard], first):
            yield Row(f"{self.path}, row {at}", value)


class Parquet:
    """A parquet file, read by pyarrow, some rows at a time."""

    expected = "expected rows"

    def __init__(self, path: Path, rows_per_shard: int):
        self.path, self._per_shard = path, rows_per_shard
        groups = self._open().metadata
        sizes = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
        self._starts = [0, *itertools.accumulate(sizes)]
        self.num_rows = self._starts[-1]

    @property
    def num_shards(self) -> int:
        """Rows over rows per shard, rounded up."""
        return -(-self.num_rows // self._per_shard)

    def rows(self, shard: int) -> Iterator[Row]:
        """See `RowFile`; rows count from 0. SourceError if the file is damaged."""
        first = shard * self._per_shard
        stop = min(first + self._per_shard, self.num_rows)
        file = self._open()
        for group, (begin, end) in enumerate(itertools.pairwise(self._starts)):
            if begin >= stop or end <= first:
                continue
            at, batches = begin, file.iter_batches(PARQUET_BATCH, row_groups=[group])
            while at < min(end, stop):
                with self._damage():
                    batch = next(batches)
                    values = batch.to_pylist() if at + len(batch) > first else [None] * len(batch)
                for number, value in enumerate(values, at):
                    if first <= number < stop:
                        yield Row(f"{self.path}, row {number}", value)
                at += len(values)

    def _open(self):
        purpose, install = f"the corpus {self.path}", "-r requirements-parquet.txt"
        parquet = optional("pyarrow.parquet", purpose, install)
        with open(self.path, "rb"):  # an error of the system names the file
            pass
        with self._damage():
            return parquet.ParquetFile(str(self.path))

    def _damage(self):
        def refused(reason: str) -> SourceError:
            return SourceError(f"{self.path}: cannot be read as a parquet file ({reason})")

        return failures_as(refused)
