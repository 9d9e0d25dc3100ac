"""Rows of documents: no image is cut, no token is lost, little room is wasted."""

import numpy as np
import pytest

from emu3_jax.data.tokens.cutting import Tokens
from emu3_jax.data.tokens.packing import PackedRows, Position, RowPacker, assemble, best_fit
from emu3_jax.sequence import TokenClass

PAD = 999


def document(length, whole=True, first=0, source=0):
    ids = np.arange(first, first + length, dtype=np.int32)
    weights, classes = (ids % 7).astype(np.float32), (1 + ids % 4).astype(np.uint8)
    return Tokens(ids, weights, classes, source, (length - 1,) if whole else None)


class Stream:
    """An endless stream of documents of random lengths, with distinct ids."""

    def __init__(self, low=3, high=40, whole=True, seed=0):
        self.low, self.high, self.whole, self.seed = low, high, whole, seed

    def __getitem__(self, index):
        rng = np.random.default_rng((self.seed, index))
        length = int(rng.integers(self.low, self.high))
        return document(length, self.whole, first=1000 * (index + 1), source=index % 3)


def packer(stream, seq_len=64, window=8, position=Position()):  # noqa: B008
    return RowPacker(stream, seq_len, window, (0, 0), position)


def test_best_fit_fills_the_fullest_row_with_room():
    assert best_fit([5, 4, 3, 3, 3], 8) == [[0, 2], [1, 3], [4]]
    assert best_fit([8, 8, 1], 8) == [[0], [1], [2]]
    lengths = np.random.default_rng(0).integers(1, 33, 300).tolist()
    rows = best_fit(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(300))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 64
    assert len(rows) <= np.ceil(sum(lengths) / 64) + 2


def test_assembled_row():
    a, b = document(4, first=10, source=2), document(3, first=50, source=1)
    row = assemble([(a, 0, 3), (b, 0, 2)], 8, PAD)
    assert row["inputs"].tolist() == [10, 11, 12, 50, 51, PAD, PAD, PAD]
    assert row["targets"].tolist() == [11, 12, 13, 51, 52, PAD, PAD, PAD]
    assert row["segment_ids"].tolist() == [1, 1, 1, 2, 2, 0, 0, 0]
    assert row["positions"].tolist() == [0, 1, 2, 0, 1, 0, 0, 0]
    assert row["sources"].tolist() == [2, 2, 2, 1, 1, 0, 0, 0]
    # Weights and classes are those of the targets.
    assert row["weights"].tolist() == [11 % 7, 12 % 7, 13 % 7, 51 % 7, 52 % 7, 0, 0, 0]
    assert row["classes"].tolist()[:5] == [1 + i % 4 for i in (11, 12, 13, 51, 52)]
    assert row["classes"].tolist()[5:] == [TokenClass.PAD] * 3


def test_every_document_comes_once_and_whole():
    stream, p = Stream(), packer(Stream())
    seen = {}
    for _ in range(200):
        for tokens, start, stop in p.next_row():
            index = int(tokens.ids[0]) // 1000 - 1
            assert index not in seen and (start, stop) == (0, len(stream[index].ids) - 1)
            seen[index] = stop
    # Nothing is dropped before the current window.
    assert set(range(p.position.document)) <= set(seen)


def test_rows_are_well_filled_and_long_documents_do_not_come_first():
    p = packer(Stream(), window=32)
    rows = [p.next_row() for _ in range(320)]
    filled = [sum(stop - start for _, start, stop in row) for row in rows]
    assert np.mean(filled) > 0.97 * 64 and max(filled) <= 64
    # Sorted rows would give the first half of each window far fewer documents than the second.
    counts = np.array([len(row) for row in rows]).reshape(10, 32)
    assert abs(counts[:, :16].mean() - counts[:, 16:].mean()) < 0.4


def test_text_is_cut_at_the_row_and_loses_nothing():
    p = packer(Stream(low=100, high=300, whole=False), seq_len=64, window=8)
    tokens_seen = {}
    for _ in range(100):
        for tokens, start, stop in p.next_row():
            tokens_seen.setdefault(int(tokens.ids[0]), []).append((start, stop))
    done = [found for first, found in tokens_seen.items() if first // 1000 <= p.position.document]
    assert len(done) > 10 and p.position.cut == p.position.document and p.position.dropped == 0
    for found in done:
        found.sort()
        assert found[0][0] == 0 and all(
            a[1] == b[0] for a, b in zip(found, found[1:], strict=False)
        )


def test_nothing_is_read_before_the_first_batch():
    """Where making an iterator fails, grain prints tracebacks after the error's sentence."""

    class Damaged:
        def __getitem__(self, index):
            raise ValueError("a damaged record")

    rows = iter(PackedRows([Damaged()], [0], 8, 0, 4, 1, [Position()], [0]))
    for _ in range(2):
        with pytest.raises(ValueError, match="a damaged record"):
            next(rows)


def test_too_long_documents_are_counted_or_an_error(caplog):
    p = packer(Stream(low=40, high=90), seq_len=64)
    for _ in range(50):
        assert all(stop - start <= 64 for _, start, stop in p.next_row())
    first = p.position.document
    lengths = [len(Stream(40, 90)[i].ids) - 1 for i in range(first)]
    assert p.position.dropped == sum(n > 64 for n in lengths) > 0
    assert "longer than the sequence length 64" in caplog.text
    with pytest.raises(ValueError, match="longer than the sequence length 64; none fits"):
        packer(Stream(low=100, high=101), seq_len=64).next_row()


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 61])
def test_a_position_is_enough_to_go_on(count):
    one = packer(Stream(low=20, high=70))
    for _ in range(count):
        one.next_row()
    other = packer(Stream(low=20, high=70), position=Position(*one.position))
    third = packer(Stream(low=20, high=70))
    third.skip(count)
    for _ in range(30):
        expected = [(int(t.ids[0]), a, b) for t, a, b in one.next_row()]
        for p in (other, third):
            assert [(int(t.ids[0]), a, b) for t, a, b in p.next_row()] == expected
            assert p.position == one.position
