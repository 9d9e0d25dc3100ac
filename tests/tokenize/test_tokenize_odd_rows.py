"""Rows that cannot be stored are skipped under the limit, and skips do not outlive their cause."""

import base64
import json
import types

import numpy as np
import pytest

from emu3_jax.data import media
from emu3_jax.data.tokens.records import RecordError, open_dataset
from emu3_jax.tokenize import run, shard
from emu3_jax.tokenize.prepare import Medium, Prepared
from emu3_jax.tokenize.run import TokenizeError, tokenize
from emu3_jax.tokenize.tokenize_config import TokenizeConfig


def write(folder, lines):
    lines = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")


def config(folder, **changes):
    fields = {"output": str(folder / "out"), "splits": {"train": ["train.jsonl"]}}
    return TokenizeConfig(**(fields | {"corpus": str(folder)} | changes))


def good(number):
    return {"id": f"t{number}", "text": f"text {number}"}


ODD = {
    "key": ({"id": "\ud800", "text": "a"}, "surrogates not allowed"),
    "value": ({"id": "v", "text": "a", "tag": ["\udfff"]}, "surrogates not allowed"),
    "name": ({"id": "n", "text": "a", "\udc80": 1}, "surrogates not allowed"),
    "large": ({"id": "l", "text": "a", "number": 2**64}, "Integer value out of range"),
    "small": ({"id": "s", "text": "a", "number": -(2**63) - 1}, "Integer value out of range"),
    "deep": ("[" * 100_000 + "]" * 100_000, "not a JSON row, .*recursion"),
}


@pytest.mark.parametrize("row, reason", ODD.values(), ids=ODD)
def test_an_odd_row_is_skipped_and_named(row, reason, tmp_path):
    write(tmp_path, [good(0), row, good(1)])
    with pytest.raises(TokenizeError, match=f"1 of 3 items are unusable.*jsonl:2: .*{reason}"):
        tokenize(config(tmp_path, max_skipped=0.0))
    folder = tokenize(config(tmp_path, max_skipped=0.4))[0]
    assert [record.key for record in open_dataset(folder).records("text")] == ["t0", "t1"]
    (skipped,) = (json.loads(line) for line in (folder / "skipped.jsonl").read_bytes().splitlines())
    assert skipped["where"].endswith("train.jsonl:2")
    if isinstance(row, dict):
        assert skipped["key"] == row["id"]


def test_text_that_the_tokenizer_panics_at_is_skipped(tmp_path, capfd):
    """As columns taken out of PDFs; a panic of Rust is no Exception."""
    ranks = (b"%s %d\n" % (base64.b64encode(bytes([byte])), byte) for byte in range(256))
    (tmp_path / "bytes.tiktoken").write_bytes(b"".join(ranks))
    wide = {"id": "wide", "text": "left" + " " * 1_100_000 + "right"}
    write(tmp_path, [good(0), wide, good(1)])
    settings = config(tmp_path, text_tokenizer=str(tmp_path / "bytes.tiktoken"), max_skipped=0.4)
    folder = tokenize(settings)[0]
    assert [record.key for record in open_dataset(folder).records("text")] == ["t0", "t1"]
    assert "jsonl:2" in (folder / "skipped.jsonl").read_text()
    assert "tiktoken cannot encode the text" in (folder / "skipped.jsonl").read_text()


def test_a_skipped_item_with_copies_counts_once(tmp_path, monkeypatch):
    """Its key, which no file can hold, does not prevent the copies."""
    media.write_png(tmp_path / "a.png", np.zeros((16, 16, 3), np.uint8))

    def prepare(item, rules):
        pixels = np.zeros((4, 4, 3), np.uint8)
        return Prepared(item, [Medium(pixels)] if item.image else [])

    class Batcher:
        def flush(self): ...
        def add(self, pixels, done):
            done(np.zeros((2, 2), np.int32))

    monkeypatch.setattr(shard, "prepare", prepare)
    encoder = types.SimpleNamespace(
        spatial_factor=1,
        temporal_factor=1,
        codebook_size=1,
        fingerprint="",
        batcher=lambda *rows: Batcher(),
    )
    write(tmp_path, [good(0), {"id": "\ud800", "text": "a", "image": "a.png"}])
    settings = config(tmp_path, copies={"train": 3}, max_shift=1, max_skipped=0.5)
    folder = tokenize(settings, encoder)[0]
    assert open_dataset(folder).info.skipped == 1


def test_a_record_that_cannot_be_stored_is_a_record_error():
    from emu3_jax.data.tokens.records import Record

    with pytest.raises(RecordError, match="a text or an attribute cannot be stored"):
        Record("k", "s", "text", (), {"a": 2**64}).to_bytes()


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_a_repaired_row_is_read_when_too_much_was_skipped(limit, tmp_path, monkeypatch):
    """With limit 1 all items may be skipped, but a dataset must not be empty."""
    lines = [good(0), "{broken", good(2), good(3)] if limit == 0.0 else ["{broken"] * 4
    write(tmp_path, lines)
    settings = config(tmp_path, max_skipped=limit, items_per_shard=2)
    with pytest.raises(TokenizeError, match="1 of 4 items are unusable|the corpus is empty"):
        tokenize(settings)
    write(tmp_path, [good(i) for i in range(4)])
    done = []
    whole = run.SplitJob.make
    monkeypatch.setattr(
        run.SplitJob, "make", lambda self, i, item_done: done.append(i) or whole(self, i, item_done)
    )
    folder = tokenize(settings)[0]
    assert len(open_dataset(folder)) == 4 and open_dataset(folder).info.skipped == 0
    assert (folder / "skipped.jsonl").read_bytes() == b""
    assert done == ([0] if limit == 0.0 else [0, 1])  # good items are not redone


def test_skips_within_the_limit_are_kept_by_a_run_that_goes_on(tmp_path, monkeypatch):
    write(tmp_path, ["{broken", *(good(i) for i in range(1, 6))])
    settings = config(tmp_path, max_skipped=0.5, items_per_shard=2)
    whole = run.SplitJob.make

    def stops(self, index, item_done):
        if index == 2:
            raise KeyboardInterrupt
        return whole(self, index, item_done)

    monkeypatch.setattr(run.SplitJob, "make", stops)
    with pytest.raises(KeyboardInterrupt):
        tokenize(settings)
    done = []
    monkeypatch.setattr(
        run.SplitJob, "make", lambda self, i, item_done: done.append(i) or whole(self, i, item_done)
    )
    assert open_dataset(tokenize(settings)[0]).info.skipped == 1 and done == [2]
