"""Packs several documents into one row of tokens, cut by the rule of `cutting`.

A stream of documents is read in windows: as many documents as fit into `window` rows. Within a
window, the longest document goes first, each into the fullest row that still has room (best fit).
The rows are emitted in random order, so that long documents do not all come first. Two numbers
therefore give the position of a stream: the start of its window and the number of emitted rows.
"""

import bisect
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import grain
import numpy as np

from emu3_jax.data.tokens.cutting import Piece, is_cut, pieces
from emu3_jax.sequence import TokenClass

log = logging.getLogger(__name__)

# If so many successive documents do not fit, none will.
GIVE_UP_AFTER = 10_000
# Array -> (type, value of padding). The padding id comes from the vocabulary.
FIELDS = {
    "inputs": (np.int32, None),
    "targets": (np.int32, None),
    "weights": (np.float32, 0.0),
    "classes": (np.uint8, int(TokenClass.PAD)),
    "sources": (np.int32, 0),
    "segment_ids": (np.int32, 0),
    "positions": (np.int32, 0),
}


class Position(NamedTuple):
    """Position of a stream: the first document of its window, the rows emitted from that window,
    and the documents dropped and cut so far because they are longer than a row."""

    document: int = 0
    emitted: int = 0
    dropped: int = 0
    cut: int = 0


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows as lists of indices into `lengths`, each summing to at most `capacity`.

    Longest first, each into the fullest row that has room; equal lengths keep their order.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (room left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect.bisect_left(room, (lengths[index], -1))
        if at == len(room):
            row, left = len(rows), capacity
            rows.append([])
        else:
            left, row = room.pop(at)
        rows[row].append(index)
        bisect.insort(room, (left - lengths[index], row))
    return rows


def assemble(row: Sequence[Piece], seq_len: int, pad: int) -> dict:
    """The arrays [seq_len] of one row; `FIELDS` names them.

    `classes`, `weights` and `sources` describe the targets, `segment_ids` count from 1, and
    `positions` restart at each piece.
    """
    arrays = {
        name: np.full(seq_len, pad if empty is None else empty, dtype)
        for name, (dtype, empty) in FIELDS.items()
    }
    at = 0
    for number, (tokens, start, stop) in enumerate(row, 1):
        here = slice(at, at + stop - start)
        arrays["inputs"][here] = tokens.ids[start:stop]
        arrays["targets"][here] = tokens.ids[start + 1 : stop + 1]
        arrays["weights"][here] = tokens.weights[start + 1 : stop + 1]
        arrays["classes"][here] = tokens.classes[start + 1 : stop + 1]
        arrays["sources"][here] = tokens.source
        arrays["segment_ids"][here] = number
        arrays["positions"][here] = np.arange(stop - start)
        at += stop - start
    return arrays


class RowPacker:
    """One row's stream of documents, packed; an endless iterator of rows of pieces.

    A packer made with the `position` of another continues from there. `window` is the number of
    rows packed together; `seed` decides the order in which they are emitted.
    """

    def __init__(self, documents, seq_len: int, window: int, seed: tuple, position: Position):
        self._documents, self._seq_len, self._window = documents, seq_len, window
        self._seed = seed
        # Documents already read, from number `_first` on.
        self._first, self._read = position.document, []
        self._dropped, self._cut = position.dropped, position.cut
        self._fill()
        self._emitted = position.emitted

    @property
    def position(self) -> Position:
        """Position of the next row."""
        return Position(self._first, self._emitted, self._dropped, self._cut)

    def next_row(self) -> list[Piece]:
        """The pieces of the next row."""
        if self._emitted == len(self._rows):
            self._next_window()
        row = self._rows[self._emitted]
        self._emitted += 1
        return row

    def skip(self, rows: int) -> None:
        """Skips this many rows, faster than reading them."""
        while rows:
            if self._emitted == len(self._rows):
                self._next_window()
            step = min(rows, len(self._rows) - self._emitted)
            self._emitted += step
            rows -= step

    def _next_window(self) -> None:
        self._dropped += self._dropped_here
        self._cut += self._cut_here
        self._first += self._used
        del self._read[: self._used]
        self._fill()
        self._emitted = 0

    def _get(self, offset: int) -> list:
        while offset >= len(self._read):
            tokens = self._documents[self._first + len(self._read)]
            self._read.append(pieces(tokens, self._seq_len))
        return self._read[offset]

    def _fill(self) -> None:
        """Reads the documents of one window and packs them."""
        used = total = 0
        while total <= self._window * self._seq_len:
            total += sum(stop - start for _, start, stop in self._get(used))
            used += 1
            if not total and used >= GIVE_UP_AFTER:
                raise ValueError(
                    f"{used} successive documents are longer than the sequence length "
                    f"{self._seq_len}; none fits"
                )
        while True:
            chosen = [piece for piece_list in self._read[:used] for piece in piece_list]
            packed = best_fit([stop - start for _, start, stop in chosen], self._seq_len)
            if len(packed) <= self._window or used == 1:
                break
            used -= 1
            # Do not end with dropped documents: they would change nothing.
            while used > 1 and not self._read[used]:
                used -= 1
        self._used = used
        self._cut_here = sum(map(is_cut, self._read[:used]))
        self._dropped_here = sum(not piece_list for piece_list in self._read[:used])
        if self._dropped_here:
            log.warning(
                "%d of %d documents are longer than the sequence length %d and are dropped",
                *(self._dropped_here, used, self._seq_len),
            )
        rng = np.random.Generator(
            np.random.Philox(np.random.SeedSequence([*self._seed, self._first]))
        )
        self._rows = [[chosen[i] for i in packed[row]] for row in rng.permutation(len(packed))]


class PackedRows(grain.IterDataset):
    """Endless dataset of the arrays [rows, seq_len] of some rows of the batch, and "position" int64
    [rows, 4], the `Position` of each row's stream afterwards.

    The position is part of its batch, so that it stays correct with any number of buffers and
    processes.
    """

    def __init__(self, streams, rows: Sequence[int], seq_len, pad, window, seed, starts, skips):
        super().__init__()
        self._streams, self._rows, self._seq_len, self._pad = streams, rows, seq_len, pad
        self._window, self._seed, self._starts, self._skips = window, seed, starts, skips

    def __iter__(self) -> grain.DatasetIterator:
        return _PackedRowsIterator(self._packers, self._seq_len, self._pad)

    def _packers(self) -> list[RowPacker]:
        packers = []
        for stream, row, start, skip in zip(
            self._streams, self._rows, self._starts, self._skips, strict=True
        ):
            seed = (self._seed, row)
            packers.append(RowPacker(stream, self._seq_len, self._window, seed, Position(*start)))
            packers[-1].skip(skip)
        return packers


class _PackedRowsIterator(grain.DatasetIterator):
    def __init__(self, make_packers: Callable[[], list[RowPacker]], seq_len: int, pad: int):
        super().__init__()
        self._make_packers, self._seq_len, self._pad = make_packers, seq_len, pad
        self._packers: list[RowPacker] = []

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._packers:
            # They read documents. Where that fails while an iterator is made, grain prints
            # tracebacks of its own after the error's sentence.
            self._packers = self._make_packers()
        rows = [assemble(p.next_row(), self._seq_len, self._pad) for p in self._packers]
        batch = {name: np.stack([row[name] for row in rows]) for name in FIELDS}
        batch["position"] = np.array([p.position for p in self._packers], np.int64)
        return batch

    def get_state(self) -> dict:
        """Returns {}: the position is part of the batches."""
        return {}

    def set_state(self, state: dict) -> None:
        """Accepts {} only: a stream is restarted at its position instead."""
        if state:
            raise ValueError("rows are restored by the positions in their batches")
