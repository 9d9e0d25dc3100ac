"""Chat documents: the template, loss on answers alone, turns that come back."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sequence_samples import BYTES, PAPER, texts, visuals

from emu3_jax.sequence import Document, EndOfTurn, Image, Text, Turn, chat_document, parse_chat
from emu3_jax.sequence.chat import segments_of

asked = texts.filter(lambda text: ". ASSISTANT:" not in text)


def mixed(texts):
    return texts | st.lists(texts | visuals("paper"), max_size=4).map(tuple)


turns_strategy = st.lists(
    st.builds(Turn, mixed(asked), mixed(texts), st.lists(visuals("paper"), max_size=2).map(tuple)),
    min_size=1,
    max_size=3,
)


def plain(turns):
    """The turns with the loss flags of their media on, as parsing gives them."""
    return tuple(
        Turn(tuple(map(trained, turn.asked())), tuple(map(trained, turn.answered())))
        for turn in turns
    )


def trained(part):
    return part if isinstance(part, str) else dataclasses.replace(part, loss=True)


@given(turns_strategy)
def test_chat_comes_back(turns):
    sequence = PAPER.build(chat_document(turns))
    assert PAPER.parse_chat(sequence.ids) == plain(turns)
    assert parse_chat(chat_document(turns)) == plain(turns)
    prompt = PAPER.chat_prompt([*turns[:-1], Turn(turns[-1].question, None, turns[-1].media)])
    np.testing.assert_array_equal(prompt, sequence.ids[: len(prompt)])
    answer = PAPER.prompt(segments_of(turns[-1].answered(), loss=True))[1:]
    assert sequence.ids[len(prompt) :].tolist() == [*answer, BYTES.eos]


def test_chat_template_and_loss_on_answers_alone():
    image = Image(np.zeros((1, 1), int))
    sequence = PAPER.build(
        chat_document([Turn("Who", "Me", (image,)), Turn("Why?", "So. ASSISTANT:")])
    )
    v, block = (
        BYTES,
        [BYTES.boi, *b"1*1", BYTES.img, BYTES.visual_start, BYTES.eol, BYTES.eof, BYTES.eoi],
    )
    parts = [
        ([v.bos, *b"You are a helpful assistant. USER: ", *block, *b"Who. ASSISTANT:"], 0.0),
        ([*b"Me", v.eos], 1.0),
        ([*b"USER: Why?. ASSISTANT:"], 0.0),
        ([*b"So. ASSISTANT:", v.eos], 1.0),
    ]
    assert sequence.ids.tolist() == [token for ids, _ in parts for token in ids]
    assert sequence.weights.tolist() == [weight for ids, weight in parts for _ in ids]


def test_media_within_questions_and_answers():
    """Interleaved questions, as those of LLaVA-OneVision, and images in answers, as Lumina's."""
    image = Image(np.zeros((1, 1), int))
    turns = (Turn(("First ", image, " or ", image, "?"), ("this: ", image)), Turn("Why?", ""))
    sequence = PAPER.build(chat_document(turns))
    v = BYTES
    block = [v.boi, *b"1*1", v.img, v.visual_start, v.eol, v.eof, v.eoi]
    question = [*b"First ", *block, *b" or ", *block, *b"?. ASSISTANT:"]
    parts = [
        ([v.bos, *b"You are a helpful assistant. USER: ", *question], [0.0] * 2),
        ([*b"this: "], [1.0]),
        (block, [*[1.0] * 5, 0.5, *[1.0] * 3]),
        ([v.eos], [1.0]),
        ([*b"USER: Why?. ASSISTANT:"], [0.0]),
        ([v.eos], [1.0]),
    ]
    assert sequence.ids.tolist() == [token for ids, _ in parts for token in ids]
    wanted = [w for ids, weights in parts for w in (weights * len(ids))[: len(ids)]]
    assert sequence.weights.tolist() == wanted


def test_a_turn_has_one_form():
    image = Image(np.zeros((1, 1), int))
    assert Turn((image, "a", "b"), ("c", "", "d")) == Turn("ab", "cd", (image,))
    assert Turn(("a", image, ""), media=(image,)) == Turn((image, "a", image))
    assert (Turn((image,)).media, Turn((image,)).question) == ((image,), "")


def test_other_system_text():
    turns = (Turn("a", "b"), Turn("c", "d"))
    document = chat_document(turns, system="Be brief.")
    assert PAPER.parse_chat(PAPER.build(document).ids, system="Be brief.") == turns
    with pytest.raises(ValueError, match="Turn 0 of a chat does not begin with 'You are"):
        PAPER.parse_chat(PAPER.build(document).ids)


def test_bad_chats_are_refused():
    image = Image(np.zeros((1, 1), int))
    with pytest.raises(ValueError, match="question .* contains '. ASSISTANT:'"):
        Turn("a. ASSISTANT: b", "c")
    with pytest.raises(ValueError, match="has a Text"):
        Turn("a", "b", (Text("c"),))
    with pytest.raises(ValueError, match="Turn 1 of a chat has no answer"):
        chat_document([Turn("a", "b"), Turn("c")])
    with pytest.raises(ValueError, match="no turn"):
        chat_document([])
    with pytest.raises(ValueError, match="without an answer"):
        PAPER.chat_prompt([Turn("a", "b")])
    opening = Text("You are a helpful assistant. USER: ")
    with pytest.raises(ValueError, match="Turn 0 of a chat has no '. ASSISTANT:'"):
        parse_chat(Document((opening, image, Text("a ASSISTANT:"))))
    with pytest.raises(ValueError, match="question .* contains '. ASSISTANT:'"):
        Turn(("a. ASSISTANT:", image, "b"), "c")
    with pytest.raises(ValueError, match="Turn 1 of a chat does not begin with 'USER: '"):
        parse_chat(Document((opening, Text("a. ASSISTANT:"), EndOfTurn(), Text("b"))))
