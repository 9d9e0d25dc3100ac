"""Stored examples (records), and datasets of them with their description.

A dataset is a folder: ArrayRecord files, each holding records of one kind, and a dataset.json. A
record holds text (with its ids) and visual codes, not the token sequence, so that one dataset
serves every task. dataset.json names the vocabulary and the tokenizers of the ids and codes;
reading with others is an error.
"""

import bisect
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain
import msgpack
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from emu3_jax import exit_codes
from emu3_jax.data.codec.fingerprint import check_same
from emu3_jax.data.tokens.preference_pairs import PREFERENCE, check_pair
from emu3_jax.data.tokens.segment_bytes import pack, unpack
from emu3_jax.files import MAX_TEXT_BYTES, in_words, write_atomically, written_whole
from emu3_jax.sequence import Grammar, Segment
from emu3_jax.vocab import Vocab

SCHEMA = 1
DATASET_FILE = "dataset.json"
# text: text alone; image, video: a caption and one image or clip; document: any segments in a
# fixed order; chat: a document whose loss flags matter (only answers are trained on); preference:
# a prompt, the image that is preferred for it and one that is not (`preference_pairs`).
KINDS = ("text", "image", "video", "document", "chat", PREFERENCE)


class RecordError(ValueError):
    """Stored data that cannot be read or does not fit; the sentence names the file."""


class UnreachableError(RecordError, exit_codes.TransientError):
    """Stored data that the storage did not give; a class, since worker processes send no cause."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One stored example.

    Attributes:
      key: the id of its item in the corpus.
      source: name of the corpus.
      kind: image, video, text, chat, document or preference.
      segments: those of `emu3_jax.sequence`, texts with their ids; records of kind image and video
        have (Text, Image) and (Text, Video).
      attributes: further fields of the corpus (JSON-able).
    """

    key: str
    source: str
    kind: str
    segments: tuple[Segment, ...]
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.kind == PREFERENCE:
            check_pair(self.segments)

    def to_bytes(self) -> bytes:
        """The record as stored: msgpack, integers little-endian in the narrowest type that fits.

        RecordError for what msgpack cannot hold, such as a lone surrogate or an integer above 64
        bits.
        """
        segments = [pack(segment) for segment in self.segments]
        try:
            return msgpack.packb([self.key, self.source, self.kind, segments, self.attributes])
        except (ValueError, OverflowError, TypeError) as error:
            raise RecordError(f"a text or an attribute cannot be stored ({error})") from error

    @classmethod
    def from_bytes(cls, content: bytes) -> "Record":
        """The inverse of `to_bytes`; RecordError for anything else."""
        try:
            key, source, kind, segments, attributes = msgpack.unpackb(content)
            return cls(key, source, kind, tuple(unpack(s) for s in segments), attributes)
        except Exception as error:  # msgpack and numpy raise many errors on foreign bytes
            raise RecordError(f"not a stored record of schema {SCHEMA} ({error})") from error


# ----------------------------------------------------------------------------------- datasets


@dataclasses.dataclass(frozen=True)
class Shard:
    """One ArrayRecord file of a dataset: its name, the kind of its records, their number."""

    file: str
    kind: str
    records: int

    def __post_init__(self):
        if not isinstance(self.file, str) or type(self.records) is not int or self.records < 1:
            raise TypeError(f"{self}: expected the name of a file and a number of records")


@dataclasses.dataclass(frozen=True)
class Counts:
    """Sums over the records of one kind; lengths are tokens of whole documents (BOS to EOS).

    A preference pair is two documents, and the length of the longer one counts as its length.
    `without_caption` counts images and clips whose caption is empty.
    """

    records: int = 0
    tokens: int = 0
    shortest: int = 0
    longest: int = 0
    without_caption: int = 0

    @classmethod
    def of(cls, lengths: Sequence[int], without_caption: bool = False) -> "Counts":
        """Of one record whose documents have these lengths."""
        longest = max(lengths)
        return cls(1, sum(lengths), longest, longest, int(without_caption))

    def __add__(self, other: "Counts") -> "Counts":
        if not self.records or not other.records:
            return self if self.records else other
        return Counts(
            self.records + other.records,
            self.tokens + other.tokens,
            min(self.shortest, other.shortest),
            max(self.longest, other.longest),
            self.without_caption + other.without_caption,
        )


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """The content of dataset.json.

    Attributes:
      vocabulary: which id is what.
      text_tokenizer: its fingerprint.
      vision_tokenizer: its fingerprint; "" for a dataset of text alone.
      video_format: how a clip is written in a sequence; one of `emu3_jax.sequence.VIDEO_FORMATS`.
      shards: the files, in order.
      counts: kind → how many records of which lengths.
      skipped: number of skipped items, which skipped.jsonl lists.
      recipe: all else that the content depends on (sources, pixel limits, …).
    """

    vocabulary: Vocab
    text_tokenizer: str
    vision_tokenizer: str
    video_format: str
    shards: tuple[Shard, ...]
    counts: dict[str, Counts]
    skipped: int = 0
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Of what its ids mean and of where each record is.

        The fields are named one by one, so that one that comes later changes no fingerprint.
        """
        meaning = (self.vocabulary.fingerprint, self.text_tokenizer, self.vision_tokenizer)
        positions = [(shard.file, shard.kind, shard.records) for shard in self.shards]
        tokens = {kind: counts.tokens for kind, counts in sorted(self.counts.items())}
        parts = [*meaning, self.video_format, positions, tokens, self.recipe]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The text of dataset.json."""
        plain = {"schema": SCHEMA, "vocabulary_fingerprint": self.vocabulary.fingerprint}
        plain |= {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain["vocabulary"] = self.vocabulary.to_dict()
        plain["shards"] = [dataclasses.asdict(shard) for shard in self.shards]
        plain["counts"] = {kind: dataclasses.asdict(c) for kind, c in self.counts.items()}
        return json.dumps(plain, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "DatasetInfo":
        """The inverse of `to_json`; ValueError names a missing entry or another schema."""
        plain = json.loads(text)
        if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
            found = plain.get("schema") if isinstance(plain, dict) else plain
            raise ValueError(f"expected schema {SCHEMA}, found {found!r}")
        try:
            if not isinstance(plain["text_tokenizer"] + plain["vision_tokenizer"], str):
                raise TypeError("of a tokenizer: expected a fingerprint")
            return cls(
                Vocab.from_dict(plain["vocabulary"]),
                plain["text_tokenizer"],
                plain["vision_tokenizer"],
                plain["video_format"],
                tuple(Shard(**shard) for shard in plain["shards"]),
                {kind: Counts(**counts) for kind, counts in plain["counts"].items()},
                plain["skipped"],
                plain["recipe"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"missing or wrong entry {error}") from error


class ShardWriter:
    """Writes one ArrayRecord file; a context manager. An exception inside leaves no file."""

    def __init__(self, path: str | os.PathLike):
        self.path, self.records = Path(path), 0
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> "ShardWriter":
        temporary = self._opened.enter_context(written_whole(self.path))
        # Groups of one record: any record can be read without its neighbours.
        self._writer = ArrayRecordWriter(str(temporary), "group_size:1")
        self._opened.callback(self._close)
        return self

    def write(self, record: Record) -> None:
        """Appends one record; OSError if the disk is full."""
        try:
            self._writer.write(record.to_bytes())
        except RuntimeError as error:
            raise OSError(f"{self.path} cannot be written: {error}") from error
        self.records += 1

    def __exit__(self, *raised) -> None:
        self._opened.__exit__(*raised)

    def _close(self) -> None:
        try:
            self._writer.close()
        except RuntimeError as error:
            raise OSError(f"{self.path} cannot be written: {error}") from error


class TokenDataset:
    """An opened dataset: `info`, and the stored bytes of each kind by index."""

    def __init__(self, path: str | os.PathLike, info: DatasetInfo):
        self.path, self.info = epath.Path(path), info

    def __len__(self) -> int:
        return sum(shard.records for shard in self.info.shards)

    def records(self, kind: str) -> "StoredRecords":
        """Random access to all records of a kind, in order; RecordError if there are none."""
        shards = [shard for shard in self.info.shards if shard.kind == kind]
        if not shards:
            held = ", ".join(sorted(self.info.counts)) or "nothing"
            raise RecordError(f"{self.path}: holds no records of kind {kind!r}, only {held}")
        return StoredRecords(self.path, shards)


class StoredRecords(Sequence):
    """Records by index, read from their files on access; a RecordError names a broken file."""

    def __init__(self, folder: epath.Path, shards: Sequence[Shard]):
        self._files = [folder / shard.file for shard in shards]
        self._ends = list(itertools.accumulate(shard.records for shard in shards))
        # With stated ranges, files need not be opened to count their records.
        self._raw = grain.sources.ArrayRecordDataSource(
            [f"{file}[0:{shard.records}]" for file, shard in zip(self._files, shards, strict=True)]
        )

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        try:
            return Record.from_bytes(self._raw[index])
        except (RuntimeError, RecordError) as error:
            number = bisect.bisect_right(self._ends, index)
            within = index - (self._ends[number - 1] if number else 0)
            where = f"{self._files[number]}: record {within} of this file cannot be read"
            reason = str(error).split(";")[0]  # "read() failed: TEXT": an error of the system
            _, failed, text = reason.partition("() failed: ")
            if failed:
                cause = exit_codes.system_error(text)
                may_pass = exit_codes.of(cause) == exit_codes.TRANSIENT
                kind = UnreachableError if may_pass else RecordError
                raise kind(f"{where} ({text})") from cause
            damaged = f"the file is cut short, damaged or another's ({reason})"
            raise RecordError(f"{where}: {damaged}; copy it again or tokenize anew") from error


def write_dataset_info(path: str | os.PathLike, info: DatasetInfo) -> None:
    """Writes dataset.json, atomically and last: it makes the folder a dataset."""
    write_atomically(Path(path) / DATASET_FILE, info.to_json())


def open_dataset(
    path: str | os.PathLike,
    grammar: Grammar | None = None,
    vision_tokenizer: str | None = None,
) -> TokenDataset:
    """Opens a dataset and checks that it fits the grammar and the vision tokenizer's fingerprint.

    The folder may lie in a bucket (gs://). Raises RecordError naming the folder if dataset.json or
    a shard is missing or unreadable, and ValueError naming both sides if the vocabulary, text
    tokenizer, video format or vision tokenizer differs.
    """
    path = epath.Path(path)
    file = path / DATASET_FILE
    if not file.is_file():
        raise RecordError(f"{path}: is not a finished dataset (it has no {DATASET_FILE})")
    if (size := file.stat().length) > MAX_TEXT_BYTES:
        raise RecordError(f"{file}: has {size} bytes, at most {MAX_TEXT_BYTES} are read")
    try:
        info = DatasetInfo.from_json(file.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise RecordError(
            f"{file}: cannot be read as a dataset's description ({in_words(error)})"
        ) from error
    # One listing: in a bucket each request takes a tenth of a second.
    there = {file.name for file in path.iterdir()}
    for shard in info.shards:
        if shard.file not in there:
            raise RecordError(f"{path / shard.file}: is missing, but {DATASET_FILE} lists it")
    checks = [("vision tokenizer", info.vision_tokenizer, vision_tokenizer)]
    if grammar is not None:
        theirs, ours = info.vocabulary.fingerprint, grammar.vocab.fingerprint
        checks.insert(0, ("vocabulary", theirs, ours))
        checks.insert(1, ("text tokenizer", info.text_tokenizer, grammar.tokenizer.fingerprint))
        if "video" in info.counts:
            checks.append(("video format", info.video_format, grammar.video_format))
    for what, theirs, ours in checks:
        check_same(what, {f"{path} was made with": theirs, "this run uses": ours})
    return TokenDataset(path, info)
