"""Conversations: answers by whole prompts, what is read again, and the lines of a user."""

import numpy as np
import pytest

from emu3_jax.generate import Request, Sampling, generate
from emu3_jax.generate.decoding import device
from emu3_jax.generate.modalities import Options
from emu3_jax.generate.open_ended import Conversation, chat
from emu3_jax.generate.open_ended.chat_lines import Talk
from emu3_jax.sequence import Image, Turn

GREEDY = Options(Sampling(temperature=0), max_new=8)
QUESTIONS = (
    Turn("Who?", media=(Image([[3, 4], [5, 6]]),)),
    Turn(("and ", Image([[7, 8, 9]]), " then")),
    Turn("why"),
)


def by_whole_prompts(bundle, options):
    """The answers of a conversation, each to its whole prompt by the engine."""
    turns = []
    for number, turn in enumerate(QUESTIONS):
        prompt = bundle.grammar.chat_prompt([*turns, turn])
        request = Request(prompt, max_new=options.max_new, number=number)
        params = bundle.variables["params"]
        (ids,) = generate(bundle.model, params, [request], options.sampling, bundle.vocab)
        answer = bundle.grammar.tokenizer.decode(ids[bundle.vocab.is_text(ids)].tolist())
        turns.append(Turn(turn.question, answer, turn.media))
    return turns


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(seed=5, top_k=9)])
def test_turns_are_answered_as_whole_prompts_are(tiny_bundle, sampling):
    options = Options(sampling, max_new=8)
    expected = by_whole_prompts(tiny_bundle, options)
    conversation = Conversation(tiny_bundle, options)
    for turn, known in zip(QUESTIONS, expected, strict=True):
        pieces = []
        assert conversation.ask(turn, pieces.append) == known.answer == "".join(pieces)
    assert conversation.turns == expected
    if sampling.greedy:
        pieces = []
        streaming = Options(sampling, max_new=8, stream=lambda at, piece: pieces.append(piece))
        again = chat(tiny_bundle, [*expected[:-1], QUESTIONS[-1]], streaming)
        assert again == expected[-1].answer == "".join(pieces)


def test_a_turn_reads_what_is_new_in_it(tiny_bundle, monkeypatch):
    read = []
    original = device.read_prompts

    def counted(params, cache, index, tokens, starts, counts, **static):
        read.append(int(np.sum(counts)))
        return original(params, cache, index, tokens, starts, counts, **static)

    monkeypatch.setattr(device, "read_prompts", counted)
    conversation = Conversation(tiny_bundle, GREEDY)
    conversation.ask(Turn("x" * 60))
    first = sum(read)
    # An answer that is not whole UTF-8 is other ids when it is read again.
    answer = conversation.turns[-1].answer.isascii()
    conversation.ask(Turn("y"))
    added = len("USER: y. ASSISTANT:") + 2
    assert sum(read) - first <= added + (0 if answer else 4 * GREEDY.max_new)
    conversation.clear()
    conversation.ask(Turn("x" * 60 + "z"))
    assert sum(read) - first < first  # the beginning is that of the first one


def test_a_full_context_is_named_and_changes_nothing(tiny_bundle):
    conversation = Conversation(tiny_bundle, GREEDY)
    conversation.ask(Turn("a"))
    with pytest.raises(ValueError, match="context of the model is full: .* more than 200; begin a"):
        conversation.ask(Turn("b" * 200))
    assert len(conversation.turns) == 1
    conversation.ask(Turn("b"))
    # An answer ends where the context does.
    system = len(tiny_bundle.grammar.chat_prompt([Turn("")]))
    for missing in (0, 1, 3):
        answer = chat(tiny_bundle, [Turn("c" * (200 - system - missing))], GREEDY)
        assert len(answer) <= missing + 1
    with pytest.raises(ValueError, match="context of the model is full"):
        chat(tiny_bundle, [Turn("c" * (201 - system))], GREEDY)


@pytest.mark.parametrize(
    "options, words",
    [
        (Options(Sampling(guidance=2.0)), "Guidance is for images"),
        (Options(candidates=2), "Candidates are for images"),
        (Options(max_new=0), "max_new must be at least 1 token, not 0"),
    ],
)
def test_options_that_are_not_for_texts_are_named(tiny_bundle, options, words):
    with pytest.raises(ValueError, match=words):
        Conversation(tiny_bundle, options)


def test_a_conversation_without_a_question_is_named(tiny_bundle):
    with pytest.raises(ValueError, match="has no turn"):
        chat(tiny_bundle, [])
    with pytest.raises(ValueError, match="ends with a turn without an answer"):
        chat(tiny_bundle, [Turn("a", "b")])


def test_lines_of_a_user(tiny_bundle):
    asked = []

    class Heard(Conversation):
        def ask(self, turn, stream=None):
            asked.append(turn)
            return super().ask(turn, stream)

    def read(path):
        if "missing" in path:
            raise ValueError(f"{path} is not there.")
        return Image([[1, 2]])

    said = []
    conversation = Heard(tiny_bundle, GREEDY)
    talk = Talk(conversation, read, said.append)
    lines = (
        "/help\n", "\n", "/image missing.png\n", "/image\n", "/what now\n", "/image a b.png\n",
        "What is this?\n", "Tell me more.\n", "c" * 300 + "\n", "a. ASSISTANT: b\n", "/new\n",
        "Hello\n", "/quit\n", "never\n",
    )  # fmt: skip
    talk.run(lines)
    shown = "".join(said)
    for words in (
        "/image PATH", "missing.png is not there.", "needs the path", "no command '/what now'",
        "a b.png is attached to the next message, as 1x2 codes", "context of the model is full",
        "A new conversation begins", "which the chat template reserves",
    ):  # fmt: skip
        assert words in shown
    assert [turn.question for turn in asked[:2]] == ["What is this?", "Tell me more"]
    assert asked[0].media == (Image([[1, 2]]),) and not asked[1].media
    assert [turn.question for turn in conversation.turns] == ["Hello"]


def test_an_answer_that_is_stopped_leaves_the_conversation(tiny_bundle):
    conversation = Conversation(tiny_bundle, GREEDY)
    expected = chat(tiny_bundle, [Turn("b")], GREEDY)

    def stop(piece):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversation.ask(Turn("a"), stop)
    assert not conversation.turns and conversation.ask(Turn("b")) == expected
