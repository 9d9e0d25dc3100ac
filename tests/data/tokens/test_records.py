"""Stored examples and datasets: nothing is lost, and errors name foreign data."""

import dataclasses
import json
import pickle
import re
import resource

import numpy as np
import pytest
from token_records import GRAMMAR, TOKENIZER, image_record, text, write_dataset

from emu3_jax import exit_codes, vocab
from emu3_jax.data.codec.fingerprint import check_same, vision_fingerprint
from emu3_jax.data.tokens.records import (
    Counts,
    DatasetInfo,
    Record,
    RecordError,
    ShardWriter,
    open_dataset,
    write_dataset_info,
)
from emu3_jax.models.vision.tokenizer_config import VisionTokenizerConfig
from emu3_jax.sequence import EndOfTurn, Grammar, Image, Video


def test_record_round_trip():
    codes = np.random.default_rng(0).integers(0, 70_000, (2, 3, 4))
    segments = (
        text("a", loss=False),
        text(""),
        Image(codes[0] % 100, loss=False),
        Video(codes, 2.646, 3.024),
        EndOfTurn(),
    )
    record = Record("key", "source", "chat", segments, {"tags": ["a"], "tone": None, "雪": 1.5})
    again = Record.from_bytes(record.to_bytes())
    assert again == record
    assert again.segments[3].codes.dtype == np.int32
    for one, other in zip(again.segments[:2], segments[:2], strict=True):
        assert list(one.ids) == list(other.ids)
    assert len(image_record().to_bytes()) < 120  # codes take two bytes each
    with pytest.raises(RecordError, match="not a stored record"):
        Record.from_bytes(b"something else")


def test_dataset_round_trip(tmp_path):
    records = [image_record(i) for i in range(20)]
    write_dataset(tmp_path, [*records, Record("t", "test", "text", (text("hello"),))])
    dataset = open_dataset(tmp_path, GRAMMAR, "v1")
    assert len(dataset) == 21
    stored = dataset.records("image")
    assert len(stored) == 20 and list(stored) == records
    assert DatasetInfo.from_json(dataset.info.to_json()) == dataset.info
    with pytest.raises(RecordError, match="no records of kind 'video', only image, text"):
        dataset.records("video")


def test_what_comes_together_goes_with_one_tokenizer():
    check_same("vision tokenizer", {})
    check_same("vision tokenizer", {"a is": "v1", "b states": "", "c states": None, "d is": "v1"})
    message = "^b is the vision tokenizer v1, but d was made with v2; remake one of the two"
    with pytest.raises(ValueError, match=message):
        stated = {"a states": "", "b is": "v1", "c is": "v1", "d was made with": "v2"}
        check_same("vision tokenizer", stated)


def test_data_of_other_tokenizers_is_refused_by_both_names(tmp_path):
    write_dataset(tmp_path, [image_record()])
    other = Grammar(vocab.small(TOKENIZER.size, 101), TOKENIZER)
    with pytest.raises(ValueError) as caught:
        open_dataset(tmp_path, other)
    message = str(caught.value)
    for part in (str(tmp_path), GRAMMAR.vocab.fingerprint, other.vocab.fingerprint, "vocabulary"):
        assert part in message
    with pytest.raises(ValueError, match="vision tokenizer v1, but this run uses v2"):
        open_dataset(tmp_path, GRAMMAR, "v2")
    write_dataset(tmp_path, [image_record()], text_tokenizer="other")
    with pytest.raises(ValueError, match="text tokenizer other, but this run uses"):
        open_dataset(tmp_path, GRAMMAR)
    open_dataset(tmp_path)  # nothing expected, nothing checked


def test_the_video_format_matters_where_there_are_clips(tmp_path):
    video = Record("v", "test", "video", (text("a"), Video(np.zeros((1, 2, 2), int), 4, 1)))
    univla = Grammar(GRAMMAR.vocab, TOKENIZER, "univla")
    write_dataset(tmp_path / "clips", [video])
    write_dataset(tmp_path / "stills", [image_record()])
    open_dataset(tmp_path / "stills", univla)
    with pytest.raises(ValueError, match="video format paper, but this run uses univla"):
        open_dataset(tmp_path / "clips", univla)


def test_broken_datasets_are_named(tmp_path):
    with pytest.raises(RecordError, match="not a finished dataset"):
        open_dataset(tmp_path)
    write_dataset(tmp_path, [image_record(i) for i in range(500)])
    shard = tmp_path / "image.array_record"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordError, match="image.array_record: record 7 of this file cannot be"):
        open_dataset(tmp_path).records("image")[7]
    shard.unlink()
    with pytest.raises(RecordError, match="image.array_record: is missing"):
        open_dataset(tmp_path)
    stated = json.loads((tmp_path / "dataset.json").read_text())
    for change, reason in (
        ({"schema": 9}, "expected schema 1"),
        ({"counts": {"image": {"x": 1}}}, "x"),
        ({"counts": []}, "wrong entry"),
        ({"shards": [{"file": None, "kind": "image", "records": 9}]}, "expected the name of a"),
        ({"shards": [{"file": "a", "kind": "image", "records": "9"}]}, "number of records"),
        ({"text_tokenizer": ["a"], "vision_tokenizer": []}, "expected a fingerprint"),
    ):
        (tmp_path / "dataset.json").write_text(json.dumps(stated | change))
        with pytest.raises(RecordError, match=f"dataset.json: cannot be read.*{reason}"):
            open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(RecordError, match="dataset.json: cannot be read"):
        open_dataset(tmp_path)


def two_shards(path):
    """Datasets of 5 and 7 records as one of two shards, and the second shard's file."""
    parts = [write_dataset(path / name, [image_record()] * n) for name, n in (("0", 5), ("1", 7))]
    shards = []
    for part in parts:
        shard = dataclasses.replace(*open_dataset(part).info.shards, file=f"image-{part.name}")
        (path / shard.file).write_bytes((part / "image.array_record").read_bytes())
        shards.append(shard)
    info = open_dataset(parts[0]).info
    write_dataset_info(path, dataclasses.replace(info, shards=tuple(shards)))
    return path / "image-1"


def cut_in_half(content):
    return content[: len(content) // 2]


def with_a_bit_flipped(content):
    at = content.index(b"\xba\x00m\x00")  # in the ids of a text
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


@pytest.mark.parametrize("damage", [cut_in_half, with_a_bit_flipped, lambda content: b""])
def test_a_damaged_record_is_named_by_file_and_number_within_it(damage, tmp_path):
    file = two_shards(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    records = open_dataset(tmp_path).records("image")
    damaged = r"the file is cut short, damaged or another's \(.+\); copy it again or tokenize anew"
    with pytest.raises(RecordError) as caught:
        list(records)
    message = rf"{file}: record 0 of this file cannot be read: {damaged}$"
    assert re.match(message, str(caught.value))
    assert exit_codes.of(caught.value) == exit_codes.USER
    assert records[4] == image_record()


def test_a_shard_with_fewer_records_than_stated(tmp_path):
    file = two_shards(tmp_path)
    file.write_bytes((tmp_path / "image-0").read_bytes())
    records = open_dataset(tmp_path).records("image")
    with pytest.raises(RecordError, match=r"image-1: record 6 .* another's \(index 6 out of bound"):
        records[11]


@pytest.mark.parametrize(
    "reason, code",
    [
        ("read() failed: Input/output error; reading FILE; at byte 7", exit_codes.TRANSIENT),
        ("open() failed: Too many open files; opening FILE", exit_codes.TRANSIENT),
        ("fstat() failed: Stale file handle; reading FILE", exit_codes.TRANSIENT),
        ("open() failed: No such file or directory; opening FILE", exit_codes.USER),
    ],
)
def test_what_the_disk_refuses_may_pass_by_itself(reason, code, tmp_path, monkeypatch):
    """The reader of shards raises RuntimeErrors for all, which would end a pod's job for good."""
    records = open_dataset(write_dataset(tmp_path, [image_record()])).records("image")

    class Refusing:
        def __getitem__(self, index):
            raise RuntimeError(reason)

    monkeypatch.setattr(records, "_raw", Refusing())
    text = reason.split(";")[0].partition(": ")[2]
    with pytest.raises(RecordError, match=rf"record 0 .* cannot be read \({text}\)$") as caught:
        records[0]
    assert exit_codes.of(caught.value) == code
    assert exit_codes.of(pickle.loads(pickle.dumps(caught.value))) == code  # from a worker process


def test_a_description_of_any_size_is_not_held(tmp_path):
    write_dataset(tmp_path, [image_record()])
    with open(tmp_path / "dataset.json", "ab") as file:
        file.truncate(1 << 36)
    with pytest.raises(RecordError, match="dataset.json: has 68719476736 bytes, at most 67108864"):
        open_dataset(tmp_path)


def test_shard_files_are_the_same_bytes_each_time(tmp_path):
    for name in ("a", "b"):
        with ShardWriter(tmp_path / name) as writer:
            for i in range(100):
                writer.write(image_record(i))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failed_shard_leaves_no_file(tmp_path):
    with pytest.raises(ZeroDivisionError), ShardWriter(tmp_path / "a") as writer:
        writer.write(image_record())
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_sentence_and_leaves_no_file(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="a.array_record cannot be written"):
            with ShardWriter(tmp_path / "a.array_record") as writer:
                for i in range(2000):
                    writer.write(image_record(i))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_fingerprint_of_a_vision_tokenizer():
    config = VisionTokenizerConfig(codebook_size=16)
    encoder = {"a": np.ones(3, np.float32), "b": np.zeros(2)}
    params = {"encoder": encoder, "decoder": {"a": np.ones(2)}, "quantize": np.ones((16, 4))}
    arrays = {"params": params, "batch_stats": {"encoder": {"c": np.ones(1)}}}
    found = vision_fingerprint(config, arrays)

    turned = {"params": {**params, "encoder": dict(reversed(encoder.items()))}}
    assert vision_fingerprint(config, {**arrays, **turned}) == found
    further = {"params": {**params, "decoder": {"a": np.zeros(2)}, "discriminator": np.ones(1)}}
    assert vision_fingerprint(config, {**arrays, **further}) == found
    for part in ("encoder", "quantize"):
        other = {"params": {**params, part: {"a": np.zeros(3)}}}
        assert vision_fingerprint(config, {**arrays, **other}) != found
    other = {"batch_stats": {"encoder": {"c": np.zeros(1)}}}
    assert vision_fingerprint(config, {**arrays, **other}) != found
    assert vision_fingerprint(dataclasses.replace(config, codebook_size=32), arrays) != found
    faster = dataclasses.replace(config, dtype="bfloat16", param_dtype="bfloat16")
    assert vision_fingerprint(faster, arrays) == found


def test_counts_add_up():
    total = sum((Counts(1, n, n, n, n > 5) for n in (7, 3, 9)), Counts())
    assert total == Counts(3, 19, 3, 9, without_caption=2)
