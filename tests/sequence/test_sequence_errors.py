"""Sequences and segments that are refused, and the position the error names."""

import pickle

import numpy as np
import pytest
from sequence_samples import BYTES, PAPER, SAMPLES

from emu3_jax import vocab as vocab_lib
from emu3_jax.sequence import Document, EndOfTurn, Grammar, GrammarError, Image, Text, Video
from emu3_jax.sequence import allowed_after_img as constraint_mask
from emu3_jax.text import ByteTokenizer

sample = pytest.mark.parametrize("kind", SAMPLES)


def fails_at(grammar, ids, position):
    with pytest.raises(GrammarError) as error:
        grammar.parse(ids)
    assert error.value.position == position, str(error.value)
    return error.value


@sample
def test_truncation_is_found_at_the_end(kind):
    grammar, document = SAMPLES[kind]
    ids = grammar.build(document).ids
    for length in range(len(ids)):
        error = fails_at(grammar, ids[:length], length)
        assert error.found == "the end of the sequence"


@sample
def test_dropped_marks_are_found_where_they_were(kind):
    grammar, document = SAMPLES[kind]
    v, ids = grammar.vocab, grammar.build(document).ids
    for position in np.flatnonzero(np.isin(ids, [v.bos, v.eol, v.eof, v.eoi])):
        error = fails_at(grammar, np.delete(ids, position), position)
        if not (kind == "paper" and ids[position] == v.eoi):  # another frame could begin there
            assert error.expected == v.name(ids[position])
        assert error.found == v.name(ids[position + 1])


@sample
def test_swapped_marks_are_found(kind):
    """At the mark itself, or one later where the other mark may stand too: a document may end where
    a block begins, and a clip whose length is not written may end or go on behind a frame."""
    grammar, document = SAMPLES[kind]
    legal = {("BOI", "EOS"), ("EOS", "BOI")} | ({("EOI", "vis")} if kind == "paper" else set())
    v, ids = grammar.vocab, grammar.build(document).ids
    marks = [getattr(v, role) for role in vocab_lib.ROLES] + [v.visual_start]
    second = ids.tolist().index(v.eof) + 1  # the first code of the second frame
    for position in np.flatnonzero(~v.is_text(ids)):
        for other in marks:
            wrong = ids.copy()
            wrong[position] = other
            if ids[position] == other or (v.is_visual(other) and v.is_visual(ids[position])):
                continue
            if (v.name(ids[position])[:3], v.name(other)[:3]) in legal:
                fails_at(grammar, wrong, position + 1)
            elif kind == "paper" and position == second and other == v.eoi:
                fails_at(grammar, wrong, position + 1)
            else:
                error = fails_at(grammar, wrong, position)
                assert error.found == v.name(other)


@sample
def test_wrong_size_texts(kind):
    grammar, document = SAMPLES[kind]
    ids = grammar.build(document).ids.tolist()
    boi, img = ids.index(grammar.vocab.boi), ids.index(grammar.vocab.img)
    good = bytes(ids[boi + 1 : img])
    bad = [b"", b"2*", b"0*3", b"02*3", b"2*3 ", b"2x3", b"2*3*", b"-2*3", b"2*3 8fps", b"\xff*3"]
    bad += [b"2*3 8.0fps 0.5s", b"2*3 8fps 00.5s", b"2*3 8fps 0.50s", b"2*3 .5fps 0.5s"]
    bad += [b"2*3 8fps 0.5s"] if kind == "univla" else [b"2*2*3"]
    for text in bad:
        error = fails_at(grammar, [*ids[: boi + 1], *text, *ids[img:]], boi + 1)
        assert "size text" in error.expected
    for wrong in (b"3", b"1", b"9", b"999999"):  # another number of rows or columns: found behind
        for digit in (b"2", b"3"):
            text = good.replace(digit, wrong, 1)
            if text == good:
                continue
            with pytest.raises(GrammarError) as error:
                grammar.parse([*ids[: boi + 1], *text, *ids[img:]])
            assert error.value.position > boi + len(text) + 1


def test_other_errors():
    v = BYTES
    ids = PAPER.build(Document((Text("ab"),))).ids
    assert "BOS" in fails_at(PAPER, [], 0).expected
    assert fails_at(PAPER, [*ids, v.pad], 4).found == v.name(v.pad)
    assert "outside" in fails_at(PAPER, [v.bos, v.size, v.eos], 1).found
    assert "outside" in fails_at(PAPER, [v.bos, -1, v.eos], 1).found
    fails_at(PAPER, [v.bos, v.eos, v.eos], 2)  # the end of a turn only where asked for
    assert PAPER.parse([v.bos, v.eos, v.eos], turns=True) == Document((EndOfTurn(),))
    error = fails_at(PAPER, [v.bos, v.visual_start], 1)
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) and copy.position == 1
    with pytest.raises(ValueError, match="one dimension"):
        PAPER.parse([[1]])


def test_bad_segments_are_refused():
    with pytest.raises(ValueError, match=r"Image codes have shape \(2, 2, 2\)"):
        Image(np.zeros((2, 2, 2), int))
    with pytest.raises(ValueError, match="type float64"):
        Image(np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"Video codes have shape \(2, 0, 2\)"):
        Video(np.zeros((2, 0, 2), int))
    for wrong in (-1.0, float("nan"), float("inf"), 1e6):
        with pytest.raises(ValueError, match="fps is .* expected a number from 0"):
            Video(np.zeros((1, 1, 1), int), fps=wrong)
    with pytest.raises(ValueError, match="contains a str"):
        Document(("text",))
    with pytest.raises(ValueError, match="code 16 is outside"):
        PAPER.build(Document((Image(np.full((1, 1), 16)),)))


def test_bad_grammars_are_refused():
    with pytest.raises(ValueError, match="video format is 'mp4', expected one of paper, univla"):
        Grammar(BYTES, ByteTokenizer(), "mp4")
    with pytest.raises(ValueError, match="has 256 ids, expected at most the 100"):
        Grammar(vocab_lib.small(100, 16), ByteTokenizer())
    with pytest.raises(ValueError, match="'movie', expected one of image"):
        constraint_mask(BYTES, "movie", 1, 1, 1)
    with pytest.raises(ValueError, match="kind of block is 'movie'"):
        PAPER.visual_layout("movie", 1, 1, 1)
    with pytest.raises(ValueError, match="1 frames of 0 x 2 codes"):
        PAPER.image_prompt("a", 0, 2)
