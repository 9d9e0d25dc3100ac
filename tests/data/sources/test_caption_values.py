"""The same value is the same caption, or the same problem, in a jsonl, a tar and TFDS."""

import io
import json
import tarfile

import numpy as np
import pytest

from emu3_jax.data.sources import SourceError, open_source
from emu3_jax.data.sources.caption_values import caption_text

NAN = float("nan")
VALUES = [
    ("a cat", "a cat"),
    (None, ""),
    (NAN, ""),
    ("", ""),
    (" \n\t", ""),
    ([], ""),
    (["a cat", "a dog"], "a cat"),
    (["", None, "a dog"], "a dog"),
    ("\ufeffa cat", "a cat"),
    ("a cat\r\nsits\rhere\r\n", "a cat\nsits\nhere"),
    ("  indented", "  indented"),
]
BAD = [5, 2.5, True, {"en": "a cat"}, [5]]


def from_jsonl(folder, key, value):
    row = {"id": 1, "image": "a.jpg", key: value}
    (folder / "a.jsonl").write_text(json.dumps(row) + "\n")
    (item,) = open_source("a.jsonl", folder).items(0)
    return item


def from_tar(folder, members):
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name, content in {"1.jpg": b"image", **members}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (item,) = open_source("webdataset:a.tar", folder).items(0)
    return item


@pytest.mark.parametrize("value, text", VALUES)
def test_a_value_is_the_same_text_everywhere(value, text, tmp_path):
    items = [from_jsonl(tmp_path, key, value) for key in ("text", "caption")]
    items.append(from_tar(tmp_path, {"1.json": json.dumps({"caption": value}).encode()}))
    if isinstance(value, str):
        items.append(from_tar(tmp_path, {"1.txt": value.encode()}))
    assert [(item.text, item.problem, item.kind) for item in items] == [(text, "", "image")] * len(
        items
    )
    assert caption_text(np.array(value, object)) == text


@pytest.mark.parametrize("value", BAD)
def test_what_is_no_caption_is_the_same_problem_everywhere(value, tmp_path):
    items = [from_jsonl(tmp_path, key, value) for key in ("text", "caption")]
    items.append(from_tar(tmp_path, {"1.json": json.dumps({"caption": value}).encode()}))
    reason = f"a caption must be a string, found {value[0] if value == [5] else value!r}"
    assert [item.problem for item in items] == [reason] * 3


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_of_a_member(encoding, tmp_path):
    assert from_tar(tmp_path, {"1.txt": "eine Füchsin".encode(encoding)}).text == "eine Füchsin"


def test_bytes_that_are_no_text(tmp_path):
    assert "must be UTF-8 text" in from_tar(tmp_path, {"1.txt": b"F\xfcchsin"}).problem
    with pytest.raises(SourceError, match="must be UTF-16 text"):
        caption_text(b"\xff\xfea")


def test_a_jsonl_of_another_system(tmp_path):
    """A byte order mark, and CR LF at the ends of lines."""
    rows = b'\xef\xbb\xbf{"id": 1, "text": "a"}\r\n\r\n{"id": 2, "text": "b"}\r\n'
    (tmp_path / "a.jsonl").write_bytes(rows)
    items = list(open_source("a.jsonl", tmp_path).items(0))
    assert [(item.key, item.text, item.problem) for item in items] == [
        ("1", "a", ""),
        ("2", "b", ""),
    ]


def test_the_name_of_the_caption(tmp_path):
    """A row without "text" has the caption that a tar's json would have; it stays an attribute."""
    rows = [{"caption": "c", "title": "t"}, {"text": "x", "caption": "c"}, {"captions": ["c", "d"]}]
    rows = [{"id": i, "image": "a.jpg", **row} for i, row in enumerate(rows)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = list(open_source("a.jsonl", tmp_path).items(0))
    assert [item.text for item in items] == ["c", "x", "c"]
    assert items[0].attributes == {"caption": "c", "title": "t"}
