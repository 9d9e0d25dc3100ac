"""CLIP's text tokenizer against transformers and OpenCLIP (tests/golden/clip/make.py)."""

import json
import shutil

import clip_files
import numpy as np
import pytest

from emu3_jax.scorers.clip_tokenizer import ClipTokenizer

GOLDEN = json.loads((clip_files.CLIP / "tokenizer_ids.json").read_text(encoding="utf-8"))
# OpenCLIP resolves entities, and takes the names of marks for text.
OTHERWISE = ("<|endoftext|>", "&amp;")


@pytest.fixture(params=["tokenizer.json", "vocab.json and merges.txt"])
def tokenizer(request, tmp_path):
    for name in request.param.split(" and "):
        shutil.copy(clip_files.CLIP / name, tmp_path)
    return ClipTokenizer(tmp_path)


def test_ids_are_those_of_the_projects(tokenizer):
    context = GOLDEN["context"]
    rows = tokenizer.rows([row["text"] for row in GOLDEN["rows"]], context)
    assert rows.dtype == np.int32 and rows.shape == (len(GOLDEN["rows"]), context)
    lengths = set()
    for found, row in zip(rows.tolist(), GOLDEN["rows"], strict=True):
        expected = row["transformers"]
        lengths.add(len(expected))
        assert found == expected + [0] * (context - len(expected)), row["text"]
        if not any(part in row["text"] for part in OTHERWISE):
            assert found == row["open_clip"], row["text"]
    assert {2, context} <= lengths  # an empty text and one that is cut


def test_padding_may_be_another_id(tokenizer):
    row = tokenizer.rows(["a cat"], 9, pad=tokenizer.end)[0].tolist()
    assert row[0] == tokenizer.start and set(row[3:]) == {tokenizer.end}


def test_files_of_one_tokenizer_may_be_named(tmp_path):
    found = ClipTokenizer(clip_files.CLIP / "tokenizer.json")
    assert found.size == found.end + 1 == found.start + 2
    assert found.fingerprint == ClipTokenizer(clip_files.CLIP).fingerprint


def test_broken_files_and_texts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no text tokenizer: expected tokenizer.json, or"):
        ClipTokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json is not a text tokenizer: "):
        ClipTokenizer(tmp_path)
    text = (clip_files.CLIP / "tokenizer.json").read_text(encoding="utf-8")
    file.write_text(text.replace("<|endoftext|>", "<|end|>"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"it has no <\|startoftext\|> and <\|endoftext\|>"):
        ClipTokenizer(tmp_path)
    for wrong in ("\ud800", None):
        with pytest.raises(ValueError, match="is no caption: "):
            ClipTokenizer(clip_files.CLIP).rows(["a", wrong], 8)
