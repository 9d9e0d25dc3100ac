"""Batches for pretraining: token datasets in, packed rows out, with a position to resume from.

Batch n is a function of (config, n): row r of every batch has its own stream of documents, so
neither the number of hosts nor the number of worker processes matters.
"""

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import grain
import numpy as np
from absl import flags

from emu3_jax.data.batches import Batches
from emu3_jax.data.tokens.mixture import (
    MixtureEntry,
    check_names,
    content_of,
    open_mixture,
    row_stream,
    vision_tokenizer_of,
)
from emu3_jax.data.tokens.packing import FIELDS, PackedRows, Position
from emu3_jax.sequence import Grammar, LossWeights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataConfig:
    """The data of a pretraining run.

    Attributes:
      mixture: datasets with their tasks and weights.
      batch_size: rows of the global batch, over all hosts.
      sequence_length: tokens to predict per row.
      loss_weights: weight of a token by its class (0.5 on vision tokens: paper, section 2.4).
      seed: seed of the order of documents and of every other random choice.
      pack_window: rows packed together; more rows waste less room and need more memory.
      workers: processes that read and pack; 0 uses a thread of this process.
      prefetch: number of batches prepared in advance.
    """

    mixture: tuple[MixtureEntry, ...]
    batch_size: int
    sequence_length: int
    loss_weights: LossWeights = field(default_factory=LossWeights)
    seed: int = 0
    pack_window: int = 32
    workers: int = 0
    prefetch: int = 4

    def __post_init__(self):
        check_names(self.mixture)
        for name in ("batch_size", "sequence_length", "pack_window", "prefetch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.workers < 0 or self.seed < 0:
            raise ValueError(f"workers and seed must not be negative: {self.workers}, {self.seed}")

    def source_names(self) -> tuple[str, ...]:
        """Names of the mixture's entries; `sources` in a batch are indices into them."""
        return check_names(self.mixture)


class BatchIterator(Batches):
    """Endless batches: dicts of arrays [rows, sequence_length] for the rows of this host.

    "inputs", "targets" int32; "weights" float32, "classes" uint8 (`TokenClass`) and "sources" int32
    (index into the mixture) of each target; "segment_ids" int32 (0: padding; no attention across
    segments); "positions" int32, from 0 in each segment.
    """

    def __init__(self, config: DataConfig, grammar: Grammar, rows: range):
        self._config, self._grammar, self._rows = config, grammar, rows
        self.share = dict.fromkeys(FIELDS, (rows[0], config.batch_size))
        self._datasets = open_mixture(
            config.mixture,
            grammar,
            config.loss_weights,
            config.sequence_length,
            config.seed,
        )
        self._vision_tokenizer = vision_tokenizer_of(config.mixture)
        self._contents = {entry.label: content_of(entry) for entry in config.mixture}
        self._stream = _fingerprint(config)
        self._batch = 0
        self._positions = {row: Position() for row in rows}
        self._iterators: list | None = None

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterators is None:
            self._start({})
        parts = [next(iterator) for iterator in self._iterators]
        batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        positions = batch.pop("position").tolist()
        self._positions = {row: Position(*p) for row, p in zip(self._rows, positions, strict=True)}
        self._batch += 1
        return batch

    def counts(self) -> dict[str, int]:
        """Documents of these rows so far that are longer than a row, by what became of them."""
        positions = self._positions.values()
        return {
            "documents_cut": sum(position.cut for position in positions),
            "documents_dropped": sum(position.dropped for position in positions),
        }

    def get_state(self) -> dict:
        """The position after the last batch, JSON-able: its number and four integers per row.

        It covers the rows of this host; `merge_states` combines the states of all hosts.
        """
        return {
            "batch": self._batch,
            "batch_size": self._config.batch_size,
            "sequence_length": self._config.sequence_length,
            "vision_tokenizer": self._vision_tokenizer,
            "stream": self._stream,
            "contents": self._contents,
            "rows": {str(row): list(position) for row, position in self._positions.items()},
        }

    @staticmethod
    def merge_states(states: Sequence[dict]) -> dict:
        """The state of the global batch from those of its hosts, taken after the same batch."""
        numbers = {state["batch"] for state in states}
        assert len(numbers) == 1, f"hosts are at different batches: {sorted(numbers)}"
        rows = {row: position for state in states for row, position in state["rows"].items()}
        return {**states[0], "rows": rows}

    def adapt_state(self, state: dict) -> dict:
        """A state for these batches from one of another mixture, row length, batch size, ….

        Each row begins a new window at the first document of its last window, so some documents
        may be repeated. If the number of rows has changed, all rows begin at the position of the
        average row. A state of the same batches is returned unchanged. Warns of datasets that were
        made anew, whose documents stand in another order.
        """
        contents = state.get("contents", self._contents)
        if state.get("stream", self._stream) == self._stream and contents == self._contents:
            return state
        anew = [name for name, now in self._contents.items() if contents.get(name, now) != now]
        if anew:
            log.warning("made anew since the last checkpoint: %s", ", ".join(anew))
        config = self._config
        old = {int(row): Position(*position) for row, position in state["rows"].items()}
        if state["batch_size"] == config.batch_size:
            rows = {row: p._replace(emitted=0) for row, p in old.items()}
        else:
            begin = sum(p.document for p in old.values()) // config.batch_size
            rows = {row: Position(begin) for row in range(config.batch_size)}
        return {
            **state,
            "batch_size": config.batch_size,
            "sequence_length": config.sequence_length,
            "stream": self._stream,
            "contents": self._contents,
            "rows": {str(row): list(position) for row, position in rows.items()},
        }

    def set_state(self, state: dict) -> None:
        """Continues after the batch at which `state` was taken, with any hosts and workers.

        Rows that the state does not cover (those of another host) are packed again from the start,
        which takes a while. ValueError for the state of other batches (see `adapt_state`), or of
        data that another vision tokenizer made.
        """
        for name in ("batch_size", "sequence_length"):
            if state.get(name) != getattr(self._config, name):
                raise ValueError(
                    f"the saved data position is of {name} {state.get(name)}, this run has "
                    f"{getattr(self._config, name)}; a position fits only batches of one shape"
                )
        if state["vision_tokenizer"] != self._vision_tokenizer:
            raise ValueError(
                f"the run began on codes of the vision tokenizer {state['vision_tokenizer']!r}, "
                f"but its data was remade with {self._vision_tokenizer!r}; the codes mean other "
                "things now: begin another run, or tokenize with the first one"
            )
        if state.get("stream", self._stream) != self._stream:
            raise ValueError(
                "the saved data position is of another mixture, seed or pack_window; rows of "
                "documents have no position in common with it"
            )
        for label, content in state.get("contents", {}).items():
            if content != self._contents[label]:
                raise ValueError(
                    f"the dataset {label} was made anew since the saved data position was taken, "
                    "so its documents stand in another order; go on with --allow_changes, or begin "
                    "another run"
                )
        self.close()
        self._batch = state["batch"]
        known = {int(row): Position(*position) for row, position in state["rows"].items()}
        self._positions = {row: known.get(row, Position()) for row in self._rows}
        self._start({row: self._batch for row in self._rows if row not in known})

    def close(self) -> None:
        """Stops the worker processes and threads; the next batch starts them again."""
        for iterator in self._iterators or ():
            iterator.close()
        self._iterators = None

    def _start(self, skips: dict[int, int]) -> None:
        if self._config.workers and not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads flags, which only a command parses
        groups = min(self._config.workers, len(self._rows)) or 1
        self._iterators = []
        for part in np.array_split(np.array(self._rows), groups):
            dataset = self._packed([int(row) for row in part], skips)
            if self._config.workers:
                options = grain.MultiprocessingOptions(
                    num_workers=1, per_worker_buffer_size=self._config.prefetch
                )
                dataset = dataset.mp_prefetch(options)
            else:
                dataset = grain.experimental.ThreadPrefetchIterDataset(
                    dataset, prefetch_buffer_size=self._config.prefetch
                )
            self._iterators.append(iter(dataset))
        for iterator in self._iterators:
            iterator.start_prefetch()

    def _packed(self, rows: Sequence[int], skips: dict[int, int]) -> PackedRows:
        config = self._config
        streams = [
            row_stream(self._datasets, config.mixture, row, config.batch_size) for row in rows
        ]
        return PackedRows(
            streams,
            rows,
            config.sequence_length,
            self._grammar.vocab.pad,
            config.pack_window,
            config.seed,
            [self._positions[row] for row in rows],
            [skips.get(row, 0) for row in rows],
        )


def _fingerprint(config: DataConfig) -> str:
    """Fingerprint of all that assigns documents to rows and batches, without their contents."""
    shape = (config.batch_size, config.sequence_length, config.pack_window, config.seed)
    entries = [(e.label, e.task, e.weight, e.null_prompt) for e in config.mixture]
    # Chats were once cut anywhere: a position in such rows has no meaning in those of today.
    rule = ("turns",) if any(e.task in ("chat", "document") for e in config.mixture) else ()
    if any(entry.at_least for entry in config.mixture):
        rule += (tuple(sorted(entry.at_least.items()) for entry in config.mixture),)
    return f"{zlib.crc32(repr((shape, entries, *rule)).encode()):08x}"


def make_iterator(config: DataConfig, grammar: Grammar, rows: range | None = None) -> BatchIterator:
    """The batches of a config; `rows` of the global batch are read by this host (default: all).

    Raises ValueError before any reading: datasets do not fit the grammar, hold nothing for their
    task, or hold only documents that are too long; or rows lie outside the batch.
    """
    rows = range(config.batch_size) if rows is None else rows
    if not len(rows) or min(rows) < 0 or max(rows) >= config.batch_size:
        raise ValueError(f"rows {rows} do not lie in a batch of {config.batch_size}")
    return BatchIterator(config, grammar, rows)
