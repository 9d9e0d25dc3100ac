"""Codes that are given stay; the others are drawn as if the model had drawn them too."""

import dataclasses

import numpy as np
import pytest
from tiny_models import GUIDED

from emu3_jax.generate import CancelledError, Sampling, modalities
from emu3_jax.generate.completion import partly_given
from emu3_jax.generate.decoding import requests as requests_lib
from emu3_jax.sequence import Document, Image, Text, Video

GREEDY = modalities.Options(Sampling(temperature=0.0))
DECODERS = [("sequential", None), ("jacobi", 4), ("zipar", 2)]


def some_codes(size, holes, seed=0):
    """Codes of a size, and the same with that many holes at random places."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 32, size).astype(np.int32)
    given = codes.copy()
    given.flat[rng.permutation(codes.size)[:holes]] = partly_given.DRAW
    return codes, given


def best_codes(bundle, before, block):
    """The likeliest code at each place of the last block, by one plain forward pass."""
    built = bundle.grammar.build(Document((*before, block)))
    logits = np.asarray(bundle.model.apply(bundle.variables, built.ids[None, :-1]))[0]
    start = bundle.vocab.visual_start
    best = logits[:, start : start + bundle.vocab.codebook_size].argmax(-1)
    visual = np.flatnonzero(bundle.vocab.is_visual(built.ids[1:]))
    return best[visual[-block.codes.size :]].reshape(block.codes.shape)


@pytest.mark.parametrize("holes", [1, 4, 11])
def test_what_is_drawn_is_the_likeliest_after_what_is_given(tiny_bundle, holes):
    sizes, clip_size = [(3, 4), (4, 3)], (2, 2, 3)
    given = [some_codes(size, holes, seed)[1] for seed, size in enumerate(sizes)]
    drawn = modalities.draw_images(tiny_bundle, ["a", "b"], sizes, GREEDY, given=given)
    before = [(Text("a"),), (Text("b"),)]
    blocks = [Image(codes) for codes in drawn]
    _, clip = some_codes(clip_size, holes)
    seconds = {2: 0.5}
    drawn += modalities.draw_clips(
        tiny_bundle, [""], [clip_size], 8.0, seconds, GREEDY, given=[clip]
    )
    blocks.append(Video(drawn[-1], 8.0, 0.5))
    for found, known, text, block in zip(drawn, [*given, clip], [*before, ()], blocks, strict=True):
        best = best_codes(tiny_bundle, text, block)
        np.testing.assert_array_equal(found, np.where(known < 0, best, known))


@pytest.mark.parametrize("decoder, window", DECODERS)
def test_every_decoder_keeps_what_is_given(tiny_bundle, decoder, window):
    sampling = dataclasses.replace(GUIDED, decoder=decoder, window=window)
    options = modalities.Options(sampling)
    given = [some_codes((3, 4), holes)[1] for holes in (1, 5, 11, 12)]
    drawn = modalities.draw_images(tiny_bundle, ["a"] * 4, [(3, 4)] * 4, options, given=given)
    for found, known in zip(drawn, given, strict=True):
        np.testing.assert_array_equal(found[known >= 0], known[known >= 0])
        assert found.shape == known.shape and found.min() >= 0
    again = modalities.draw_images(
        tiny_bundle, ["a"], [(3, 4)], options, numbers=[2], given=given[2:3]
    )
    np.testing.assert_array_equal(again[0], drawn[2])


def test_known_beginnings_are_read_and_nothing_behind_the_last_code_is(tiny_bundle):
    vocab, size = tiny_bundle.vocab, (2, 3)
    layout = tiny_bundle.grammar.visual_layout("image", 1, *size)
    given = np.array([[1, 2, -1], [-1, 5, 6]])
    block = partly_given.block(vocab, layout, size, given)
    assert block.begin.tolist() == vocab.visual_ids([1, 2]).tolist()
    assert block.mask.tolist() == [-1, vocab.eol, -1]
    answer = vocab.visual_ids([7, 8])
    answer = np.array([answer[0], vocab.eol, answer[1]])
    assert block.completed(answer, vocab).tolist() == [[1, 2, 7], [8, 5, 6]]
    assert block.row_ends().tolist() == [1, 3]
    whole = partly_given.block(vocab, layout, size, None)
    assert len(whole.begin) == 0 and whole.mask is layout
    assert whole.row_ends().tolist() == [3, 7]


@pytest.mark.parametrize(
    "given, words",
    [
        (np.zeros((2, 4), int), "'a' at 2x3: codes of the size 2x4 are given, not 2x3."),
        (np.zeros((2, 3), int), "'a' at 2x3: all codes are given; there is nothing to draw."),
        (np.array([[-1, 0, 0], [0, 0, 32]]), "The visual code 32 is outside"),
        (np.array([[-1, 0, 0], [0, 0, -2]]), "The visual code -2 is outside"),
    ],
)
def test_what_cannot_be_given_is_one_sentence(tiny_bundle, given, words):
    with pytest.raises(ValueError, match=words):
        modalities.draw_images(tiny_bundle, ["a"], [(2, 3)], given=[given])


@pytest.mark.parametrize("candidates", [1, 2])
@pytest.mark.parametrize("decoder, window", DECODERS)
def test_rows_are_reported_once_each_in_order(tiny_bundle, decoder, window, candidates):
    calls = []
    sampling = dataclasses.replace(GUIDED, decoder=decoder, window=window)
    options = modalities.Options(
        sampling, candidates=candidates, on_row=lambda *call: calls.append(call)
    )
    sizes = [(3, 4), (5, 2), (4, 4)]
    given = [None, None, np.zeros((4, 4), int)]
    given[2][1:3, 2] = partly_given.DRAW  # two rows have something to draw
    modalities.draw_images(tiny_bundle, ["a"] * 3, sizes, options, given=given)
    for position, rows in enumerate((3, 5, 2)):
        rows *= candidates
        expected = [(position, row, rows) for row in range(1, rows + 1)]
        assert [call[:3] for call in calls if call[0] == position] == expected


def test_rows_are_reported_while_they_are_drawn(tiny_bundle):
    """A cancel that waits for the first row comes before the last one."""
    rows = []
    options = modalities.Options(on_row=lambda *call: rows.append(call), cancel=lambda: bool(rows))
    with pytest.raises(CancelledError):
        modalities.draw_images(tiny_bundle, ["a"], [(8, 4)], options)
    assert 0 < len(rows) < 8


def test_a_cancelled_queue_carries_what_is_finished(tiny_bundle):
    sizes = [(1, 2)] * 3 + [(4, 8)] * 7
    whole = modalities.draw_images(tiny_bundle, ["a"] * 10, sizes, modalities.Options(GUIDED))
    done = []
    options = modalities.Options(
        GUIDED, batch_size=1, on_row=lambda *call: done.append(call[1] == call[2]),
        cancel=lambda: sum(done) == 4,
    )  # fmt: skip
    with pytest.raises(
        CancelledError, match="^cancelled: 4 of 10 requests are answered$"
    ) as stopped:
        modalities.draw_images(tiny_bundle, ["a"] * 10, sizes, options)
    assert len(stopped.value.answers) == 4
    for position, codes in stopped.value.answers.items():
        np.testing.assert_array_equal(codes, whole[position])


def test_cancelled_candidates_are_not_answers(tiny_bundle):
    options = modalities.Options(GUIDED, candidates=2, cancel=lambda: True)
    with pytest.raises(CancelledError, match="0 of 3 requests") as stopped:
        modalities.draw_images(tiny_bundle, ["a"] * 3, [(1, 2)] * 3, options)
    assert stopped.value.answers == {}


def test_a_cancelled_queue_of_texts_carries_texts(tiny_bundle):
    codes = [np.zeros((1, 2), int)] * 3
    options = modalities.Options(Sampling(seed=3), max_new=12)
    whole = modalities.caption_images(tiny_bundle, codes, options)
    pieces = set()
    options = dataclasses.replace(
        options, batch_size=1, stream=lambda at, piece: pieces.add(at),
        cancel=lambda: len(pieces) > 1,
    )  # fmt: skip
    with pytest.raises(CancelledError) as stopped:
        modalities.caption_images(tiny_bundle, codes, options)
    assert 0 < len(stopped.value.answers) < 3
    for position, text in stopped.value.answers.items():
        assert text == whole[position]


def test_the_exception_counts():
    assert str(requests_lib.CancelledError({0: "a", 4: "b"}, 7)) == (
        "cancelled: 2 of 7 requests are answered"
    )
