"""Prompts from lines, rows and token datasets; what has none is named."""

import json

import pytest
from token_records import image_record, write_dataset

from emu3_jax.data.prompts import read_prompts


def test_lines_rows_and_captions(tmp_path):
    (tmp_path / "a.txt").write_text("a fox\n\n  \na cat\na fox\n")
    assert [(p.key, p.text) for p in read_prompts(tmp_path / "a.txt")] == [
        ("1", "a fox"), ("4", "a cat"),
    ]  # fmt: skip
    rows = [{"id": "x", "prompt": "a fox"}, {"caption": "a cat"}, {"id": "y", "text": "a fox"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(p.key, p.text) for p in read_prompts(tmp_path / "a.jsonl")] == [
        ("x", "a fox"), ("1", "a cat"),
    ]  # fmt: skip
    dataset = write_dataset(tmp_path / "tokens", [image_record(i) for i in (0, 1, 0)])
    assert [(p.key, p.text) for p in read_prompts(dataset)] == [
        ("k0", "número 0 雪"), ("k1", "número 1 雪"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", b"\n", "a.txt: holds no prompt"),
        ("a.txt", b"\xff", "a.txt: is not UTF-8 text"),
        ("a.txt", None, "a.txt: cannot be read"),
        ("a.csv", b"a", "a.csv: expected a file .jsonl, .json, .parquet"),
        ("a.json", b"[[]]", "a.json, row 0: expected an object with a prompt"),
        ("a.json", b'[{"id": 1}]', "row 0: expected a prompt under prompt, caption"),
        ("a.jsonl", b"{", "a.jsonl:1: not a JSON row"),
    ],
)
def test_what_holds_no_prompts(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


def test_a_limit_takes_prompts_at_even_distances(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join("0123456"))
    for limit, taken in ((0, "0123456"), (3, "135")):
        found = read_prompts(tmp_path / "a.txt", limit)
        assert "".join(prompt.text for prompt in found) == taken
