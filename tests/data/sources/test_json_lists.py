"""Rows of a json file, found without holding it, and files that are no list."""

import json

import numpy as np
import pytest

from emu3_jax.data.sources import SourceError, json_lists, row_files
from emu3_jax.data.sources.row_files import open_rows, picked

ROWS = [
    {"id": number, "text": text * (number % 5), "inner": [{"a": None}, [1, -2.5e3, "]"]]}
    for number, text in enumerate(["plain", 'quo"te\\', "ключ 🦊", "a,b]}{", "\n\t", "\udc80"] * 3)
]


def all_of(path, per_shard=7):
    opened = open_rows(path, per_shard)
    return [row for shard in range(opened.num_shards) for row in opened.rows(shard)]


@pytest.mark.parametrize("chunk", [3, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_elements_of_a_list_whatever_is_read_at_once(chunk, indent, tmp_path, monkeypatch):
    monkeypatch.setattr(json_lists, "CHUNK", chunk)
    elements = [*ROWS, "text", [], None, *range(10**5, 10**5 + 50)]
    for ascii_only in (True, False):
        text = json.dumps(elements, indent=indent, ensure_ascii=ascii_only)
        for mark in (b"", b"\xef\xbb\xbf"):
            content = mark + text.encode(errors="surrogatepass") + b"\n"
            (tmp_path / "a.json").write_bytes(content)
            found = all_of(tmp_path / "a.json")
            readable = [one for one in zip(elements, found, strict=True) if not one[1].problem]
            assert all(wanted == row.value for wanted, row in readable)
            # A lone surrogate that is not escaped is no Unicode text.
            odd = 0 if ascii_only else sum("\udc80" in str(row) for row in elements)
            assert len(readable) == len(elements) - odd


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize("per_shard", [1, 4, 100])
def test_rows_are_picked_by_number(ending, per_shard, tmp_path):
    rows = [{"id": i} for i in range(20)]
    lines = "\n\n".join(map(json.dumps, rows)) if ending == "jsonl" else json.dumps(rows)
    (tmp_path / f"a.{ending}").write_text(lines)
    opened = open_rows(tmp_path / f"a.{ending}", per_shard)
    for numbers in (range(20), [0], [3, 4, 19], np.array([7, 8, 9, 10, 12]), []):
        found = [row.value for row in picked(opened, per_shard, numbers)]
        assert found == [rows[number] for number in numbers]


@pytest.mark.parametrize(
    "content, reason",
    [
        ('{"a": 1}', "at byte 0 expected a list of rows"),
        ("", "expected a list of rows .the file ends."),
        ('[{"a": 1}, {"a": ]', "at byte 11 expected a row"),
        ('[{"a": 1} {"a": 2}]', "at byte 10 expected a comma or the end of the list .found '{'."),
        ('[{"a": 1}, ', "the file ends|Expecting value"),
        ("[1, 2", "the file ends"),
        ("[" + "[" * 100_000, "not JSON .*at byte 1"),
        ("[ ]", "the corpus is empty"),
    ],
)
def test_a_file_that_is_no_list_says_where(content, reason, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(SourceError, match=f"a.json: .*({reason})"):
        open_rows(tmp_path / "a.json", 1)


def test_a_long_row_is_a_problem_in_lines_and_an_error_in_a_list(tmp_path, monkeypatch):
    for module in (json_lists, row_files):
        monkeypatch.setattr(module, "MAX_TEXT_BYTES", 100)
    monkeypatch.setattr(json_lists, "CHUNK", 10)
    rows = [{"a": 1}, {"a": "x" * 140}, {"a": 2}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (_, long, last) = all_of(tmp_path / "a.jsonl")
    assert long.problem == "a row of 150 bytes, at most 100 are read" and last.value == rows[2]
    (tmp_path / "a.json").write_text(json.dumps([{"a": 1}, {"a": "x" * 1000}]))
    with pytest.raises(SourceError, match="a row of more than 100 bytes"):
        open_rows(tmp_path / "a.json", 1)
