"""Questions about one image as rows: all are asked, and both kinds of rows can be read."""

import json
import random

import pytest

from emu3_jax.data.questions.chats import Asked, chats, single, write_rows
from emu3_jax.data.sources import FolderSource

ASKED = [Asked(f"kind {i % 2}", f"question {i}?", f"answer {i}") for i in range(9)]


def asked_of(rows):
    return [(t["question"], t["answer"]) for row in rows for t in row["turns"]]


@pytest.mark.parametrize("longest", [1, 4, 20])
def test_every_question_is_asked_once_in_chats_of_at_most_so_many_turns(longest):
    rows = chats("a", "a.png", ASKED, random.Random(0), longest)
    assert sorted(asked_of(rows)) == sorted((one.question, one.answer) for one in ASKED)
    assert max(len(row["turns"]) for row in rows) <= longest
    assert len({row["id"] for row in rows}) == len(rows)
    # The image stands before the first question alone.
    assert all([t.get("image") for t in r["turns"]] == ["a.png"] + [None] * (len(r["turns"]) - 1)
               for r in rows)  # fmt: skip


def test_the_same_seed_gives_the_same_rows_and_the_order_varies():
    first, again, other = (chats("a", "a.png", ASKED, random.Random(n), 4) for n in (0, 0, 1))
    assert first == again != other


def test_rows_are_read_as_chats(tmp_path):
    rows = [*chats("a", "a.png", ASKED, random.Random(0), 4), *single("b", "b.png", ASKED)]
    write_rows(tmp_path / "rows.jsonl", rows)
    items = list(FolderSource(tmp_path / "rows.jsonl").items(0))
    assert [item.problem for item in items] == [""] * len(rows)
    assert {item.kind for item in items} == {"chat"}
    assert items[-1].attributes == {"kind": "kind 0"}
    assert len(items[-1].turns) == 1
    assert json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0]) == rows[0]
