"""Rows of json, jsonl and parquet files: the same ones in every cut, and errors that name files."""

import json

import pytest

from emu3_jax import foreign
from emu3_jax.data.sources import SourceError, row_files

ROWS = [{"id": i, "text": f"row {i}", "content": b"\0" * i} for i in range(100)]
PLAIN = [{"id": row["id"], "text": row["text"]} for row in ROWS]


def write_parquet(path, rows, group=37):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), str(path), row_group_size=group)
    return path


def write(path, rows=PLAIN):
    if path.suffix == ".parquet":
        return write_parquet(path, rows)
    lines = "".join(json.dumps(row) + "\n\n" for row in rows)
    path.write_text(lines if path.suffix == ".jsonl" else json.dumps(rows, indent=1))
    return path


@pytest.mark.parametrize("ending", row_files.ENDINGS)
@pytest.mark.parametrize("per_shard", [1, 30, 37, 100, 500])
def test_shards_together_are_the_rows(tmp_path, ending, per_shard):
    found = row_files.open_rows(write(tmp_path / f"a{ending}"), per_shard)
    shards = [list(found.rows(i)) for i in range(found.num_shards)]
    assert {len(shard) for shard in shards[:-1]} <= {per_shard}
    assert [row.value for shard in shards for row in shard] == PLAIN and found.num_rows == 100
    assert len({row.where for shard in shards for row in shard}) == 100


def test_bytes_of_parquet_are_read_as_they_are(tmp_path):
    found = row_files.open_rows(write_parquet(tmp_path / "a.parquet", ROWS), 50)
    assert [row.value for row in found.rows(1)] == ROWS[50:]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", b"\n", "a.jsonl: the corpus is empty; expected one JSON row per line"),
        ("a.json", b"[]", "a.json: the corpus is empty; expected a list of objects"),
        ("a.json", b"{}", "a.json: holds a dict, expected a list of objects"),
        ("a.json", b"{", "a.json: is not JSON, expected a list of objects"),
        ("a.parquet", b"PAR1", "a.parquet: cannot be read as a parquet file"),
        ("a.csv", b"a,b", "a.csv: expected a file .jsonl, .json, .parquet"),
    ],
)
def test_files_without_rows(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        row_files.open_rows(tmp_path / name, 10)


@pytest.mark.parametrize("ending", row_files.ENDINGS)
def test_a_file_that_is_not_there(tmp_path, ending):
    with pytest.raises(SourceError, match=f"a{ending}: cannot be read .No such file"):
        row_files.open_rows(tmp_path / f"a{ending}", 10)


def test_a_damaged_parquet_file_is_named_while_it_is_read(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ROWS)
    content = bytearray(path.read_bytes())
    content[4:600] = b"\xff" * 596
    path.write_bytes(content)
    with pytest.raises(SourceError, match="a.parquet: cannot be read as a parquet file"):
        list(row_files.open_rows(path, 100).rows(0))


def test_parquet_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", ROWS)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(foreign.MissingPackageError, match="a.parquet needs the package pyarrow"):
        row_files.open_rows(path, 10)
