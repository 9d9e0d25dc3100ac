"""Chats and documents with several media become records: order, loss flags, skipped rows."""

import json
import re

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from grey_encoder import GreyEncoder, level, made_from, skipped_of, write_greys

from emu3_jax.data import media
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


# LLaVA


def talk(*values):
    return [
        {"from": ("human", "gpt")[number % 2], "value": value}
        for number, value in enumerate(values)
    ]


def test_llava_rows_become_chats(tmp_path):
    write_greys(tmp_path / "images", [f"{i}.png" for i in range(4)])
    clip = np.repeat(np.arange(4, dtype=np.uint8) * 9 + 50, 16 * 16 * 3).reshape(4, 16, 16, 3)
    media.write_webp(tmp_path / "images" / "clip.webp", clip, fps=4)
    rows = [
        {"id": "one", "image": "1.png", "conversations": talk("What?\n<image>", "A cat.")},
        {"image": ["2.png", "3.png"], "conversations": talk("<image> or <image>?", "b")},
        {"id": "later", "image": "2.png", "conversations": talk("Hi", "Ho", "<image>\nIt?", "Yes")},
        {"id": "text", "conversations": talk("<image> is a tag", "yes"), "model": "m"},
        {"id": "film", "video": "clip.webp", "conversations": talk("<image>\nWho?", "Me")},
    ]
    (tmp_path / "chats.json").write_text(json.dumps(rows))
    dataset = made_from(tmp_path, "llava_next:chats.json#images")
    records = list(open_dataset(dataset).records("chat"))
    assert skipped_of(dataset) == []
    assert [record.key for record in records] == [
        "one",
        "chats.json, row 1",
        "later",
        "text",
        "film",
    ]
    assert [chat_of(record) for record in records] == [
        [([1, "\nWhat?"], ["A cat."])],
        [([2, " or ", 3, "?"], ["b"])],
        [(["Hi"], ["Ho"]), ([2, "\nIt?"], ["Yes"])],
        [(["<image> is a tag"], ["yes"])],
        [([50, "\nWho?"], ["Me"])],
    ]
    assert (records[3].attributes, records[3].source) == ({"model": "m"}, "chats")


def test_llava_rows_that_cannot_be_honoured_are_listed(tmp_path):
    write_greys(tmp_path, ["0.png"])
    good = talk("<image>?", "a")
    bad = [
        ({"image": "0.png", "conversations": talk("<image>", "a", "<image>", "b")}, "2 .* for 1"),
        ({"image": ["0.png", "0.png"], "conversations": good}, "1 placeholders for 2 media"),
        ({"image": "none.png", "conversations": good}, "none.png"),
        ({"image": "../0.png", "conversations": good}, "outside of the folder"),
        ({"image": 5, "conversations": good}, '"image" must be a path, found 5'),
        ({"image": "0.png", "video": "a.mp4", "conversations": good}, "found both"),
        ({"conversations": [{"from": "system", "value": "s"}, *good]}, "unknown role 'system'"),
        ({"conversations": [{"from": "human"}]}, 'a text "value"'),
        ({"conversations": talk("a", "b", "c")}, "the last question has no answer"),
        ({"conversations": [*talk("a"), *talk("b", "c")]}, "do not alternate"),
        ({"conversations": []}, "at least one message"),
        ({"image": "0.png"}, 'expected "conversations"'),
        ({"image": "0.png", "conversations": talk("draw", "<image>")}, "lumina:FILE"),
        ({"conversations": talk("a. ASSISTANT: b", "c")}, "the chat template reserves"),
        (["a list"], "expected an object, found a list"),
    ]
    rows = [row for row, _ in bad] + [{"image": "0.png", "conversations": good}]
    write_rows(tmp_path / "chats.jsonl", rows)
    for rule in ("llava", "llava_next"):
        dataset = made_from(tmp_path, f"{rule}:chats.jsonl", output=str(tmp_path / rule))
        skipped = skipped_of(dataset)
        assert len(skipped) == len(bad) == open_dataset(dataset).info.skipped
        by_row = {one["where"]: one["reason"] for one in skipped}
        for number, (_, reason) in enumerate(bad):
            found = by_row[f"{tmp_path / 'chats.jsonl'}:{number + 1}"]
            assert re.search(reason, found), found
        assert len(open_dataset(dataset).records("chat")) == 1


def test_parquet_holds_its_images(tmp_path):
    """The columns of LLaVA-OneVision's release: an image is bytes, and null in rows of text."""
    write_greys(tmp_path, ["0.png", "1.png"])
    image = {"bytes": (tmp_path / "1.png").read_bytes(), "path": None}
    rows = [
        {"id": "a", "image": image, "conversations": talk("<image>\nWhat?", "A cat.")},
        {"id": "b", "image": None, "conversations": talk("Hi", "Ho")},
    ]
    for number, row in enumerate(rows):
        table = pyarrow.Table.from_pylist([{**row, "data_source": "web"}])
        pyarrow.parquet.write_table(table, tmp_path / f"train-{number}.parquet")
    dataset = made_from(tmp_path, "llava_next:train-*.parquet")
    records = list(open_dataset(dataset).records("chat"))
    assert [chat_of(record) for record in records] == [
        [([1, "\nWhat?"], ["A cat."])],
        [(["Hi"], ["Ho"])],
    ]
    assert records[0].attributes == {"data_source": "web"}


# Lumina


def test_lumina_rows_have_images_in_answers(tmp_path):
    write_greys(tmp_path, [f"{i}.png" for i in range(4)])
    draw = "Generate an image of 16x16 according to the following prompt:\na cat"
    rows = [
        {"id": "draw", "image": "1.png", "conversations": talk(draw, "<|image|>")},
        {
            "id": "edit",
            "image": ["2.png", "3.png", "0.png"],
            "conversations": talk("<|image|>Red, <image>!", "so: <|image|>", "no", "<|image|>."),
        },
        {"id": "text", "conversations": talk(" hi ", "ho\n")},
        {"id": "many", "image": "1.png", "conversations": talk("<|image|>", "<|image|>")},
        {"id": "literal", "conversations": talk("What does <|image|> mean?", "a mark")},
        {"id": "two", "conversations": [*talk("a"), *talk("b", "c")]},
        {"id": "role", "conversations": [{"from": "user", "value": "a"}]},
    ]
    (tmp_path / "chats.json").write_text(json.dumps(rows))
    dataset = made_from(tmp_path, "lumina:chats.json")
    records = list(open_dataset(dataset).records("chat"))
    assert [chat_of(record) for record in records] == [
        [([draw], [1])],
        [([2, "Red, <image>!"], ["so: ", 3]), (["no"], [0, "."])],
        [([" hi "], ["ho\n"])],
    ]
    trained = [[level(p) for p in r.segments if isinstance(p, Image) and p.loss] for r in records]
    assert trained == [[1], [3, 0], []]
    reasons = {one["key"]: one["reason"] for one in skipped_of(dataset)}
    assert reasons.keys() == {"many", "literal", "two", "role"}
    assert reasons["many"] == "the row has 2 placeholders for 1 media (image)"
    assert "1 placeholders for 0 media" in reasons["literal"]
    assert "do not alternate" in reasons["two"] and "unknown role 'user'" in reasons["role"]


def test_a_source_without_a_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="none.json: does not exist"):
        made_from(tmp_path, "llava:none.json")
    with pytest.raises(ValueError, match="'lava:a.json' is not a corpus; .* KIND of llava, "):
        made_from(tmp_path, "lava:a.json")


@pytest.mark.parametrize("late", [False, True], ids=["at once", "at the end"])
def test_equal_images_of_a_shard_are_encoded_once(late, tmp_path):
    """Question sets have many rows about one image; codes come during `add` or in `flush`."""
    write_greys(tmp_path, ["0.png", "1.png"])
    names = ["0.png", "1.png", "0.png", "1.png", "0.png"]
    turns = [[{"question": "?", "image": name, "answer": "!"}] for name in names]
    write_rows(tmp_path / "rows.jsonl", [{"id": i, "turns": t} for i, t in enumerate(turns)])
    seen = []

    class Counting(GreyEncoder):
        def add(self, pixels, done):
            seen.append(lambda: GreyEncoder.add(self, pixels, done))
            if not late:
                seen[-1]()

        def flush(self):
            for encode in seen if late else ():
                encode()

    dataset = made_from(tmp_path, "rows.jsonl", encoder=Counting())
    assert len(seen) == 2
    assert [chat_of(r)[0][0][0] for r in open_dataset(dataset).records("chat")] == [0, 1, 0, 1, 0]
