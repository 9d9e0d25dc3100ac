"""Reading the files that benchmarks are released in; every error names file and row."""

import base64
import binascii
import csv
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from emu3_jax.data.sources.row_files import open_rows
from emu3_jax.evaluate.benchmarks.benchmark import Question

# A TSV holds images as base64: a cell may be as long as the largest image file.
csv.field_size_limit(min(sys.maxsize, 1 << 30))
PARQUET_ROWS = 256

_KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def json_file(path: pathlib.Path, kind: type = dict) -> Any:
    """The content of a json file: an object, or a list with `kind=list`."""
    content = _decoded(path.read_text(encoding="utf-8") if _exists(path) else "", str(path))
    if not isinstance(content, kind):
        raise ValueError(f"{path}: expected {_KINDS[kind]}, found {type(content).__name__}")
    return content


def json_lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of each line of a file of JSON lines; empty lines are passed over."""
    _exists(path)
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path}:{number}"
                row = _decoded(line, where)
                check_object(where, row)
                yield where, row


def tsv(
    path: pathlib.Path, *needed: str, delimiter: str = "\t", quoting: int = csv.QUOTE_MINIMAL
) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, column → cell) of each row of a TSV with a header that has the `needed` columns.

    Args:
      path: the file.
      *needed: columns.
      delimiter: between cells; a csv has ",".
      quoting: csv.QUOTE_NONE where quotes are part of the cells.
    """
    _exists(path)
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter=delimiter, quoting=quoting)
        missing = [name for name in needed if name not in (rows.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path}: the column {missing[0]!r} is missing; it has {rows.fieldnames}"
            )
        for number, row in enumerate(rows, start=1):
            where = f"{path}, row {number}"
            if None in row or None in row.values():
                raise ValueError(f"{where}: expected {len(rows.fieldnames)} cells")
            yield where, row


def parquet(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, column → value) of each row of a parquet file."""
    _exists(path)
    file = open_rows(path, PARQUET_ROWS)
    for shard in range(file.num_shards):
        for row in file.rows(shard):
            if row.problem:
                raise ValueError(f"{row.where}: {row.problem}")
            yield row.where, row.value


def fields(where: str, row: Mapping[str, Any], **kinds: type) -> tuple:
    """The values of named fields of a row, checked; ValueError for one missing or of another type.

    Args:
      where: file and row, for messages.
      row: the object.
      **kinds: field → its type.
    """
    values = []
    for name, kind in kinds.items():
        if name not in row:
            raise ValueError(f"{where}: the field {name!r} is missing; it has {sorted(row)}")
        value = row[name]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(f"{where}: {name} is {value!r}, expected {_KINDS[kind]}")
        values.append(value)
    return tuple(values)


def texts(where: str, row: Mapping[str, Any], name: str) -> list[str]:
    """The value of a field that is a list of texts; ValueError for another, or for no text."""
    (values,) = fields(where, row, **{name: list})
    if not values or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{where}: {name} is {values!r}, expected one text or more")
    return values


def base64_image(text: str, where: str) -> bytes:
    """The bytes of an image that a cell holds as base64."""
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{where}: the image is not base64 ({error})") from error
    if not content:
        raise ValueError(f"{where}: the image is empty")
    return content


def image_file(path: pathlib.Path, where: str) -> pathlib.Path:
    """The path of an image; ValueError if there is no such file."""
    if not path.is_file():
        raise ValueError(f"{where}: the image {path} does not exist")
    return path


def parquet_image(value: Any, where: str) -> bytes:
    """The bytes of an image column of a parquet file, {bytes, path} as `datasets` writes it."""
    content = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(content, bytes) or not content:
        raise ValueError(f"{where}: the image has no bytes")
    return content


def _exists(path: pathlib.Path) -> bool:
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    return True


def _decoded(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error})") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of pairs; json alone would keep the last of equal names without a word."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} occurs twice; names in an object must differ")
    return content


def objects(where: pathlib.Path | str, rows: list) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of each entry of a list in a file."""
    for number, row in enumerate(rows, start=1):
        check_object(f"{where}, entry {number}", row)
        yield f"{where}, entry {number}", row


def check_object(where: str, row: Any) -> None:
    """ValueError if a value is not a JSON object."""
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, found {type(row).__name__}")


def tables(
    data: pathlib.Path, tsv_name: str, parquet_names: str = "test-*.parquet"
) -> list[pathlib.Path]:
    """The files of a benchmark that is released as parquet files and as a TSV.

    `data` may be such a file; in a folder the parquet files in it or in its folder "data" come
    first, else the TSV of that name.
    """
    if data.is_file():
        return [data]
    for folder in (data, data / "data"):
        if found := sorted(folder.glob(parquet_names)):
            return found
    if not (data / tsv_name).is_file():
        raise ValueError(f"{data}: expected {tsv_name}, or data/{parquet_names}")
    return [data / tsv_name]


def json_text(text: str, where: str) -> Any:
    """The content of a cell that holds JSON."""
    return _decoded(text, where)


def check_unique(questions: Sequence[Question], where: str) -> None:
    """ValueError for no question, or for the first id that occurs twice."""
    if not questions:
        raise ValueError(f"{where} holds no question")
    seen = set()
    for question in questions:
        if question.id in seen:
            raise ValueError(f"{where}: the id {question.id!r} occurs twice; ids must differ")
        seen.add(question.id)
