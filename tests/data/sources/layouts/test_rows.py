"""Rows of json, jsonl and parquet files by number, and files that are none."""

import json
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from emu3_jax.data.sources import SourceError
from emu3_jax.data.sources.layouts import rows as rows_lib
from emu3_jax.data.sources.layouts.rows import open_rows
from emu3_jax.foreign import MissingPackageError

ROWS = [
    {"id": number, "text": text * (number % 5), "inner": [{"a": None}, [1, -2.5e3, "]"]]}
    for number, text in enumerate(["plain", 'quo"te\\', "ключ 🦊", "a,b]}{", "\n\t", "\udc80"] * 3)
]


def all_of(opened):
    return list(opened.read(range(len(opened))))


@pytest.mark.parametrize("chunk", [3, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_elements_of_a_list_whatever_is_read_at_once(chunk, indent, tmp_path, monkeypatch):
    monkeypatch.setattr(rows_lib, "CHUNK", chunk)
    elements = [*ROWS, "text", [], None, *range(10**5, 10**5 + 50)]
    for ascii_only in (True, False):
        text = json.dumps(elements, indent=indent, ensure_ascii=ascii_only)
        for mark in (b"", b"\xef\xbb\xbf"):
            content = mark + text.encode(errors="surrogatepass") + b"\n"
            (tmp_path / "a.json").write_bytes(content)
            found = all_of(open_rows(tmp_path / "a.json"))
            readable = [one for one in zip(elements, found, strict=True) if not one[1][1]]
            assert all(wanted == row for wanted, (row, _) in readable)
            # A lone surrogate that is not escaped is no Unicode text.
            odd = 0 if ascii_only else sum("\udc80" in str(row) for row in elements)
            assert len(readable) == len(elements) - odd


def test_lines_and_rows_in_any_selection(tmp_path):
    lines = [json.dumps(ROWS[0]), "", "{broken", json.dumps(ROWS[1])]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    opened = open_rows(tmp_path / "a.jsonl")
    assert len(opened) == 3
    (first, second), last = opened.read([0, 1]), list(opened.read([2]))
    assert first == (ROWS[0], "") and last == [(ROWS[1], "")]
    assert second[0] is None and second[1].startswith("not a JSON row (Expecting")


@pytest.mark.parametrize(
    "content, reason",
    [
        ('{"a": 1}', "not JSON at byte 0, expected a list of rows"),
        ("", "expected a list of rows .the file ends."),
        ('[{"a": 1}, {"a": ]', "not JSON at byte 11, expected a row"),
        ('[{"a": 1} {"a": 2}]', "at byte 10, expected a comma or the end of the list .found '{'."),
        ('[{"a": 1}, ', "the file ends|Expecting value"),
        ("[1, 2", "the file ends"),
        ("[" + "[" * 100_000, "not JSON at byte 1"),
        ("[ ]", "the corpus is empty"),
    ],
)
def test_a_file_that_is_no_list_says_where(content, reason, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(SourceError, match=f"a.json: .*({reason})"):
        open_rows(tmp_path / "a.json")


def test_a_long_row_costs_itself_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_lib, "MAX_TEXT_BYTES", 100)
    monkeypatch.setattr(rows_lib, "CHUNK", 10)
    rows = [{"a": 1}, {"a": "x" * 140}, {"a": 2}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (_, long, last) = all_of(open_rows(tmp_path / "a.jsonl"))
    assert long == (None, "a row of 150 bytes, at most 100 are read") and last == (rows[2], "")
    (tmp_path / "a.json").write_text(json.dumps([{"a": 1}, {"a": "x" * 1000}]))
    with pytest.raises(SourceError, match="a row of more than 100 bytes"):
        open_rows(tmp_path / "a.json")


def test_rows_of_parquet_across_row_groups(tmp_path):
    images = [{"bytes": b"\x89PNG", "path": None}, None, {"bytes": None, "path": "a.png"}] * 3
    talk = [{"from": "human", "value": "hi"}]
    rows = [{"id": str(i), "image": image, "talk": talk} for i, image in enumerate(images)]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    opened = open_rows(path)
    assert all_of(opened) == [(row, "") for row in rows]
    assert list(opened.read(np.array([1, 4, 5, 8]))) == [(rows[i], "") for i in (1, 4, 5, 8)]


@pytest.mark.parametrize(
    "ending, reason", [("parquet", "cannot be read as parquet"), ("csv", "of the kind")]
)
def test_files_of_another_kind_are_refused(ending, reason, tmp_path):
    (tmp_path / f"a.{ending}").write_text("a,b\n1,2\n")
    with pytest.raises(SourceError, match=f"a.{ending}: .*{reason}"):
        open_rows(tmp_path / f"a.{ending}")
    with pytest.raises(SourceError, match="cannot be read .No such file"):
        open_rows(tmp_path / "none.jsonl")


def test_parquet_without_pyarrow_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingPackageError, match="needs the package pyarrow.*requirements-parq"):
        open_rows(tmp_path / "a.parquet")
