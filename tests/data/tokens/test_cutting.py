"""One rule of cutting: training, likelihood and generation admit the same tokens."""

import numpy as np
import pytest
from token_records import GRAMMAR

from emu3_jax.data.tokens.cutting import Tokens, ends_of, is_cut, pieces
from emu3_jax.data.tokens.packing import Position, RowPacker
from emu3_jax.generate import scoring
from emu3_jax.generate.decoding.requests import Request, check
from emu3_jax.sequence import Document, Image, Text, TokenClass, Turn, chat_document

EOS = GRAMMAR.vocab.eos
IMAGE = Image(np.zeros((3, 4), int))


def tokens(document):
    built = GRAMMAR.build(document)
    return Tokens(built.ids, built.weights, built.classes, 0, ends_of(built))


def parts(document, row):
    return [(start, stop) for _, start, stop in pieces(tokens(document), row)]


def chat(*sizes, media=()):
    """Turns whose answers have the given numbers of letters."""
    turns = [Turn(f"q{i}", "a" * n, media) for i, n in enumerate(sizes)]
    return chat_document(turns, system="S")


def test_text_goes_on_and_an_image_stays_whole():
    text = Document((Text("words"), Text(" more")))  # 10 letters, BOS, EOS: 11 pairs
    assert parts(text, 11) == [(0, 11)] and not is_cut(pieces(tokens(text), 11))
    assert parts(text, 4) == [(0, 4), (4, 8), (8, 11)] and is_cut(pieces(tokens(text), 4))
    for shown in (Document((Text("abc"), IMAGE)), Document((IMAGE, Text("abc")))):
        pairs = len(GRAMMAR.build(shown).ids) - 1
        assert parts(shown, pairs) == [(0, pairs)]
        assert parts(shown, pairs - 1) == [] and not is_cut([])


@pytest.mark.parametrize("media", [(), (IMAGE,)])
def test_a_chat_ends_after_the_last_answer_that_fits(media):
    document = chat(5, 9, 40, media=media)
    ends = [len(GRAMMAR.build(chat(*sizes, media=media)).ids) - 1 for sizes in ((5,), (5, 9))]
    whole = len(GRAMMAR.build(document).ids) - 1
    assert parts(document, whole) == [(0, whole)]
    assert parts(document, whole - 1) == parts(document, ends[1]) == [(0, ends[1])]
    assert parts(document, ends[1] - 1) == parts(document, ends[0]) == [(0, ends[0])]
    assert parts(document, ends[0] - 1) == []
    ((found, _, stop),) = pieces(tokens(document), ends[1])
    assert found.ids[stop] == EOS and is_cut(pieces(tokens(document), ends[1]))


def test_an_answer_after_an_untrained_text_keeps_it():
    document = Document((Text("question", loss=False), Text("answer")))
    assert parts(document, 15) == [(0, 15)] and parts(document, 14) == []


class Chats:
    """An endless stream: a third fits, a third loses turns, a third does not fit."""

    def __getitem__(self, index):
        return tokens((chat(5), chat(5, 60), chat(60))[index % 3])


def test_training_counts_what_it_cuts_and_drops_over_windows():
    row = len(GRAMMAR.build(chat(5)).ids) + 9
    packer = RowPacker(Chats(), row, 4, (0, 0), Position())
    answers = 0
    for _ in range(40):
        for found, start, stop in packer.next_row():
            assert start == 0 and found.ids[stop] == EOS
            answers += int((found.weights[1 : stop + 1] > 0).sum() == len("aaaaa") + 1)
    at = packer.position
    assert answers >= 40 and at.cut == pytest.approx(at.document / 3, abs=1)
    assert at.dropped == pytest.approx(at.document / 3, abs=1)
    again = RowPacker(Chats(), row, 4, (0, 0), Position(*at))
    again.skip(40)
    packer.skip(40)
    assert again.position == packer.position


def test_likelihood_cuts_as_training_does():
    documents = [chat(5), chat(5, 60), chat(60), Document((Text("x" * 70),))]
    row = len(GRAMMAR.build(documents[0]).ids) + 9
    trained = [part for document in documents for part in parts(document, row)]
    scored = scoring.fit({"any": [GRAMMAR.build(d) for d in documents]}, max_context=row)
    assert [piece[1:] for piece in scored.pieces] == trained
    assert (scored.cut, scored.dropped) == (2, 1) and scored.row_length == 64
    batch = next(scoring.packed_batches(scored, 8))
    assert (batch["classes"] != TokenClass.PAD).sum() == 2 * len("aaaaa ") + 71
    assert batch["positions"].max() < row


def test_what_fills_a_row_can_be_drawn_and_no_more():
    document = Document((Text("abc"), Image(np.zeros((4, 4), int))))
    built = GRAMMAR.build(document)
    row = len(built.ids) - 1
    assert parts(document, row) == [(0, row)]
    drawn = Request(
        GRAMMAR.image_prompt("abc", 4, 4), None, GRAMMAR.visual_layout("image", 1, 4, 4)
    )
    assert len(drawn.prompt) + drawn.new == len(built.ids)
    check([drawn], GRAMMAR.vocab, row)
    assert parts(document, row - 1) == []
    with pytest.raises(ValueError, match=f"{row} tokens are needed .* context of {row - 1}"):
        check([drawn], GRAMMAR.vocab, row - 1)
