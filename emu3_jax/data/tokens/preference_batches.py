"""Batches of preference pairs: two images for one caption, each whole and in a row of its own.

Pair n is a function of (config, n): the pairs of all datasets are shuffled anew each epoch, so
neither the number of hosts nor the size of a batch changes their order.
"""

import bisect
import functools
import hashlib
import itertools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from emu3_jax.config import check_choice
from emu3_jax.data.batches import Batches
from emu3_jax.data.tokens.mixture import check_names, vision_tokenizer_of
from emu3_jax.data.tokens.records import Record, RecordError, open_dataset
from emu3_jax.sequence import Document, Grammar, Image, Text, TokenClass

KIND = "preference"
# What of an answer counts: all behind IMG (codes, ends of rows, EOS), or the codes alone.
COUNTED = ("answer", "codes")
# Array -> type.
FIELDS = {
    "inputs": np.int32,
    "targets": np.int32,
    "segment_ids": np.int32,
    "counted": np.float32,
}


@dataclass(frozen=True)
class PreferenceEntry:
    """One dataset of pairs, each of which is read once an epoch.

    Attributes:
      dataset: folder with a dataset.json, which holds records of kind preference.
      null_prompt: share of the pairs whose caption is left empty on both sides. Without them
        tuning moves the conditional model alone, and guidance at generation loses its other half.
      name: name of the entry in messages; "" for the dataset.
    """

    dataset: str
    null_prompt: float = 0.0
    name: str = ""

    def __post_init__(self):
        if not 0 <= self.null_prompt <= 1:
            raise ValueError(f"null_prompt must be from 0 to 1, found {self.null_prompt}")

    @property
    def label(self) -> str:
        """The entry's name in messages."""
        return self.name or self.dataset

    @property
    def ability(self) -> str:
        """What generation calls that which is learnt."""
        return "text_to_image"


@dataclass(frozen=True)
class PreferenceData:
    """The data of a run on pairs.

    Attributes:
      mixture: the datasets.
      batch_size: pairs of the global batch, over all hosts.
      sequence_length: tokens to predict per row; a row holds one caption and one image.
      counted: which tokens of an image count: "answer", all behind IMG with the ends of rows and
        EOS, or "codes".
      seed: seed of the order of pairs and of the choice of empty captions.
    """

    mixture: tuple[PreferenceEntry, ...]
    batch_size: int
    sequence_length: int
    counted: str = "answer"
    seed: int = 0

    def __post_init__(self):
        check_names(self.mixture)
        check_choice("counted", self.counted, COUNTED)
        for name in ("batch_size", "sequence_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative: {self.seed}")


class Answer(NamedTuple):
    """A caption and one of its images as tokens: ids int32 [n]; counted bool [n]."""

    ids: np.ndarray
    counted: np.ndarray

    @property
    def key(self) -> str:
        """Sixteen hex digits of all that its log-probability under given weights depends on."""
        content = self.ids.astype("<i4").tobytes() + np.packbits(self.counted).tobytes()
        return hashlib.sha256(content).hexdigest()[:16]


class Pairs:
    """All pairs of some datasets by index, as tokens.

    Raises ValueError before any training: datasets that do not fit the grammar or each other, no
    pairs, or one that is longer than a row.
    """

    def __init__(self, data: PreferenceData, grammar: Grammar):
        self._data, self._grammar = data, grammar
        self.vision_tokenizer = vision_tokenizer_of(data.mixture)  # raises if there are two
        opened = [open_dataset(entry.dataset, grammar) for entry in data.mixture]
        self.contents = {
            entry.label: dataset.info.fingerprint
            for entry, dataset in zip(data.mixture, opened, strict=True)
        }
        self._records = [dataset.records(KIND) for dataset in opened]
        self._ends = list(itertools.accumulate(map(len, self._records)))
        self._check_all()

    def __len__(self) -> int:
        return self._ends[-1]

    def answers(self, index: int, null_prompt: bool) -> tuple[Answer, Answer]:
        """The chosen and the rejected answer of a pair, with or without its caption."""
        prompt, *images = self._pair(index)[1].segments
        prompt = Text("", ids=()) if null_prompt else prompt
        chosen, rejected = (self._answer(prompt, image) for image in images)
        return chosen, rejected

    def null_prompt(self, index: int) -> float:
        """The share of unconditional prompts in the dataset of a pair."""
        return self._data.mixture[self._entry(index)].null_prompt

    def _entry(self, index: int) -> int:
        return bisect.bisect_right(self._ends, index)

    def _pair(self, index: int) -> tuple[str, Record]:
        """(the name of its dataset, the record) of a pair."""
        entry = self._entry(index)
        first = self._ends[entry - 1] if entry else 0
        return self._data.mixture[entry].dataset, self._records[entry][index - first]

    def _answer(self, prompt: Text, image: Image) -> Answer:
        built = self._grammar.build(Document((prompt, image)))
        if self._data.counted == "codes":
            return Answer(built.ids, built.classes == TokenClass.IMAGE)
        (img,) = np.flatnonzero(built.ids == self._grammar.vocab.img)
        return Answer(built.ids, np.arange(len(built)) > img)

    def _check_all(self) -> None:
        """Reads every pair once: a pair is never cut, so all must fit before training begins."""
        longest, where = 0, ""
        for index in range(len(self)):
            dataset, record = self._pair(index)
            prompt, *images = record.segments
            for image in images:
                length = self._grammar.document_length(Document((prompt, image))) - 1
                if length > longest:
                    longest, where = length, f"{dataset}: the pair {record.key!r}"
        if longest > self._data.sequence_length:
            raise RecordError(
                f"{where} has {longest} tokens to predict and pairs are never cut, so "
                f"data.sequence_length must be at least {longest}; it is "
                f"{self._data.sequence_length}"
            )


class PairBatches(Batches):
    """Endless batches: dicts of arrays [pairs, 2, sequence_length], chosen before rejected.

    "inputs", "targets", "segment_ids" int32 (0: padding), and "counted" float32, 1 for each target
    that counts. With `reference` also "reference" float32 [pairs, 2], its log-probabilities of the
    counted tokens.
    """

    def __init__(
        self,
        data: PreferenceData,
        grammar: Grammar,
        rows: range,
        pairs: Pairs | None = None,
        reference: Mapping[str, float] | None = None,
    ):
        self._data, self._rows, self._pad = data, rows, grammar.vocab.pad
        self._all = pairs or Pairs(data, grammar)
        self._reference = reference
        names = [*FIELDS, *(["reference"] if reference is not None else [])]
        self.share = dict.fromkeys(names, (rows[0], data.batch_size))
        self._drawn = 0

    def __next__(self) -> dict[str, np.ndarray]:
        parts = [self._arrays(*self._draw(self._drawn + row)) for row in self._rows]
        self._drawn += self._data.batch_size
        return {name: np.stack([part[name] for part in parts]) for name in parts[0]}

    def _draw(self, number: int) -> tuple[int, bool]:
        """(index of pair `number` of the stream, whether its caption is left out)."""
        epoch, place = divmod(number, len(self._all))
        index = int(self._order(epoch)[place])
        share = self._all.null_prompt(index)
        # Its own stream, so that a change of the share changes no order.
        drawn = _generator(self._data.seed, number, 1).random() if share else 1.0
        return index, bool(drawn < share)

    @functools.lru_cache(maxsize=2)  # noqa: B019 - as long-lived as the run
    def _order(self, epoch: int) -> np.ndarray:
        return _generator(self._data.seed, epoch, 0).permutation(len(self._all))

    def _arrays(self, index: int, null_prompt: bool) -> dict[str, np.ndarray]:
        answers = self._all.answers(index, null_prompt)
        sides = [row_of(answer, self._data.sequence_length, self._pad) for answer in answers]
        arrays = {name: np.stack([side[name] for side in sides]) for name in FIELDS}
        if self._reference is not None:
            known = [self._reference[answer.key] for answer in answers]
            arrays["reference"] = np.array(known, np.float32)
        return arrays

    def get_state(self) -> dict:
        """The position after the last batch, JSON-able: the number of pairs drawn."""
        entries = [(entry.label, entry.null_prompt) for entry in self._data.mixture]
        stream = repr((self._data.seed, entries)).encode()
        return {
            "pairs": self._drawn,
            "stream": f"{zlib.crc32(stream):08x}",
            "contents": self._all.contents,
            "vision_tokenizer": self._all.vision_tokenizer,
        }

    def set_state(self, state: dict) -> None:
        """Continues after the batch at which `state` was taken, with batches of any size.

        ValueError for the state of other pairs (see `adapt_state`), or of codes of another vision
        tokenizer.
        """
        here = self.get_state()
        if state["vision_tokenizer"] != here["vision_tokenizer"]:
            raise ValueError(
                f"the run began on codes of the vision tokenizer {state['vision_tokenizer']!r}, "
                f"but its pairs were remade with {here['vision_tokenizer']!r}; begin another run"
            )
        whats = {"stream": "another mixture or seed", "contents": "datasets since made anew"}
        self.check_position(state, whats)
        self._drawn = state["pairs"]

    def adapt_state(self, state: dict) -> dict:
        """A state for these pairs from one of others: the number of pairs stays."""
        here = self.get_state()
        return {**state, "stream": here["stream"], "contents": here["contents"]}


def row_of(answer: Answer, seq_len: int, pad: int) -> dict[str, np.ndarray]:
    """The arrays [seq_len] of one row; `FIELDS` names them."""
    length = len(answer.ids) - 1
    empty = {"inputs": pad, "targets": pad}
    row = {name: np.full(seq_len, empty.get(name, 0), dtype) for name, dtype in FIELDS.items()}
    row["inputs"][:length], row["targets"][:length] = answer.ids[:-1], answer.ids[1:]
    row["segment_ids"][:length] = 1
    row["counted"][:length] = answer.counted[1:]
    return row


def _generator(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
