"""Rows of json, jsonl and parquet files by number; no file is held in memory."""

import array
import bisect
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from emu3_jax.data.sources.source import SourceError
from emu3_jax.files import MAX_TEXT_BYTES, lines_within
from emu3_jax.foreign import failures_as, optional

# Bytes of a json file that are read at once.
CHUNK = 1 << 20
_NOT_BLANK = re.compile(r"[^ \t\r\n]")
_BYTE_ORDER_MARK = "\xef\xbb\xbf"


class Rows(Protocol):
    """A file of rows."""

    path: Path

    def __len__(self) -> int:
        """Number of rows."""

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[object, str]]:
        """(row, "") of each number, which rise, or (None, why the row cannot be read)."""


def open_rows(path: str | os.PathLike) -> Rows:
    """The rows of a file, by its ending; SourceError if there are none or it cannot be read."""
    path = Path(path)
    kind = {".json": JsonRows, ".jsonl": JsonRows, ".parquet": ParquetRows}.get(path.suffix)
    if kind is None:
        raise SourceError(f"{path}: expected a file of the kind .json, .jsonl or .parquet")
    try:
        rows = kind(path)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not len(rows):
        raise SourceError(f"{path}: the corpus is empty; expected at least one row")
    return rows


class JsonRows:
    """The elements of the list that a json file is, or the lines of a jsonl file.

    Only where each row begins and ends is kept. Raises SourceError for a json file that is no list,
    or is damaged, since no row behind the damage can be found.
    """

    def __init__(self, path: Path):
        self.path = path
        with open(path, "rb") as file:
            spans = _lines(file) if path.suffix == ".jsonl" else _elements(file, path)
            # First byte and number of bytes of each row, flat: 16 bytes a row.
            self._spans = array.array("q", itertools.chain.from_iterable(spans))

    def __len__(self) -> int:
        return len(self._spans) // 2

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[object, str]]:
        """As `Rows.read`."""
        with open(self.path, "rb") as file:
            for number in numbers:
                start, length = self._spans[2 * number : 2 * number + 2]
                if length > MAX_TEXT_BYTES:
                    yield None, f"a row of {length} bytes, at most {MAX_TEXT_BYTES} are read"
                    continue
                file.seek(start)
                try:
                    row, problem = json.loads(file.read(length)), ""
                except (
                    ValueError,
                    RecursionError,
                ) as error:  # RecursionError: brackets in brackets
                    row, problem = None, f"not a JSON row ({error})"
                yield row, problem


def _lines(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """(first byte, number of bytes) of each line that is not blank."""
    offset = 0
    for line, length in lines_within(file, MAX_TEXT_BYTES):
        if line is None or line.strip():
            yield offset, length
        offset += length


def _elements(file: BinaryIO, path: Path) -> Iterator[tuple[int, int]]:
    """(first byte, number of bytes) of each element of the list in a json file."""
    window = _Window(file)
    expected = "a list of rows"
    try:
        window.take("[")
        expected = "a row, or the end of the list"
        if window.peek() == "]":
            return
        while True:
            yield window.element()
            expected = "a comma or the end of the list"
            if window.peek() == "]":
                return
            window.take(",")
            expected = "a row"
    except (ValueError, RecursionError) as error:
        at = window.start + window.at
        raise SourceError(
            f"{path}: not JSON at byte {at}, expected {expected} ({error})"
        ) from error


class _Window:
    """What is in sight of a json file, as text in which every byte is one character.

    JSON's own characters are ASCII, so positions in this text are positions in the file.
    """

    def __init__(self, file: BinaryIO):
        self._file, self._decoder = file, json.JSONDecoder()
        self.text, self.at, self.start = "", 0, 0
        self._grow()
        if self.text.startswith(_BYTE_ORDER_MARK):
            self.at = len(_BYTE_ORDER_MARK)

    def _grow(self) -> bool:
        """Forgets what was taken, reads at least as much as is left; False at the file's end."""
        self.start += self.at
        self.text, self.at = self.text[self.at :], 0
        more = self._file.read(max(CHUNK, len(self.text)))
        self.text += more.decode("latin-1")
        return bool(more)

    def peek(self) -> str:
        """The next character that is not blank; "" at the end of the file."""
        while not (found := _NOT_BLANK.search(self.text, self.at)):
            self.at = len(self.text)
            if not self._grow():
                return ""
        self.at = found.start()
        return self.text[self.at]

    def take(self, character: str) -> None:
        """Passes over the next character that is not blank; ValueError if it is another."""
        if (found := self.peek()) != character:
            raise ValueError(f"found {found!r}" if found else "the file ends")
        self.at += 1

    def element(self) -> tuple[int, int]:
        """Passes over a value; returns its first byte and its number of bytes."""
        self.peek()
        while True:
            failure, stop = ValueError("the file ends"), len(self.text)
            try:
                _, stop = self._decoder.raw_decode(self.text, self.at)
            except ValueError as error:
                failure = error
            if stop < len(self.text):  # a number at the end of what is in sight may go on
                break
            if len(self.text) - self.at > MAX_TEXT_BYTES:
                raise ValueError(f"a row of more than {MAX_TEXT_BYTES} bytes")
            if not self._grow():
                raise failure
        span = self.start + self.at, stop - self.at
        self.at = stop
        return span


class ParquetRows:
    """The rows of a parquet file; one row group is in memory at a time.

    A column of the datasets library's kind Image, {"bytes", "path"}, is read as it stands.
    """

    def __init__(self, path: Path):
        self.path = path
        self._parquet = optional("pyarrow.parquet", f"{path}", "-r requirements-parquet.txt")
        self._stops = list(itertools.accumulate(self._group_sizes()))

    def _group_sizes(self) -> Iterable[int]:
        with open(self.path, "rb") as file, failures_as(self._refusal):
            metadata = self._parquet.ParquetFile(file).metadata
            return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    def _refusal(self, reason: str) -> SourceError:
        return SourceError(f"{self.path}: cannot be read as parquet ({reason})")

    def __len__(self) -> int:
        return self._stops[-1] if self._stops else 0

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[object, str]]:
        """As `Rows.read`; SourceError for a damaged file."""
        with open(self.path, "rb") as file:
            with failures_as(self._refusal):
                opened = self._parquet.ParquetFile(file)
            for group, wanted in itertools.groupby(numbers, self._group_of):
                with failures_as(self._refusal):
                    table = opened.read_row_group(group)
                first = self._stops[group] - table.num_rows
                for number in wanted:
                    with failures_as(self._refusal):
                        (row,) = table.slice(number - first, 1).to_pylist()
                    yield row, ""

    def _group_of(self, number: int) -> int:
        return bisect.bisect_right(self._stops, number)
