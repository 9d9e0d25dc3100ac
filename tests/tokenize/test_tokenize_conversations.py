"""Chats and documents with several media become records: order, loss flags, skipped rows."""

import json
import re

import pytest
from grey_encoder import level, made_from, skipped_of, write_greys

from emu3_jax.data.tokens.records import open_dataset
from emu3_jax.sequence import Document, Image, parse_chat


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def shown(parts):
    """Texts as they are, media by their grey levels."""
    return [part if isinstance(part, str) else level(part) for part in parts]


def chat_of(record):
    return [
        (shown(turn.asked()), shown(turn.answered()))
        for turn in parse_chat(Document(record.segments))
    ]


def test_a_turn_holds_media_in_its_question_and_its_answer(tmp_path):
    write_greys(tmp_path, [f"{i}.png" for i in range(5)])
    question = [{"text": "first "}, {"image": "1.png"}, {"text": " or "}, {"image": "2.png"}]
    turns = [
        {"image": "0.png", "question": question, "answer": [{"text": "a"}, {"image": "3.png"}]},
        {"question": "and?", "answer": [{"image": "4.png"}]},
    ]
    write_rows(tmp_path / "rows.jsonl", [{"id": 1, "turns": turns}])
    (record,) = open_dataset(made_from(tmp_path, "rows.jsonl")).records("chat")
    assert chat_of(record) == [([0, "first ", 1, " or ", 2], ["a", 3]), (["and?"], [4])]
    trained = [level(part) for part in record.segments if isinstance(part, Image) and part.loss]
    assert trained == [3, 4]


def test_segments_state_their_loss(tmp_path):
    write_greys(tmp_path, ["0.png", "1.png"])
    segments = [{"image": "0.png", "loss": False}, {"text": "invert", "loss": False}]
    segments += [{"image": "1.png"}]
    rows = [{"id": 1, "segments": segments}, {"id": 2, "segments": [{"text": "a", "loss": 1}]}]
    write_rows(tmp_path / "rows.jsonl", rows)
    dataset = made_from(tmp_path, "rows.jsonl")
    (record,) = open_dataset(dataset).records("document")
    assert [part.loss for part in record.segments] == [False, False, True]
    assert [one["reason"] for one in skipped_of(dataset)] == [
        'the "loss" of a segment must be true or false, found 1'
    ]


@pytest.mark.parametrize(
    "turn, reason",
    [
        ({"question": ["a"], "answer": "b"}, '"question" must be a text or a list of objects'),
        ({"question": [{"image": "x", "video": "y"}], "answer": "b"}, "found both"),
        ({"question": [{"image": "../0.png"}], "answer": "b"}, "lies outside of the folder"),
        ({"question": "a", "answer": [{"sound": "b"}]}, "a segment needs .* found"),
        ({"question": "a", "answer": [{"image": "none.png"}]}, "none.png"),
        ({"question": "a", "answer": 5}, 'a turn needs a "answer"'),
    ],
)
def test_a_turn_that_cannot_be_read_is_skipped(turn, reason, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"id": 0, "text": "a"}, {"id": 1, "turns": [turn]}])
    (skipped,) = skipped_of(made_from(tmp_path, "rows.jsonl"))
    assert skipped["where"].endswith("rows.jsonl:2")
    assert re.search(reason, skipped["reason"]), skipped["reason"]
