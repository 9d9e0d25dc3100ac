"""Questions of one's own: what is read, what is right, and what is refused."""

import json

import numpy as np
import pytest

from emu3_jax.data import media
from emu3_jax.evaluate.benchmarks.open_answers import own_questions

ROW = {"question_id": 1, "image": "a.png", "text": "Color?", "answer": "red", "category": "color"}


@pytest.fixture
def write(tmp_path):
    media.write_png(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))

    def write(*rows):
        path = tmp_path / "questions.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def test_rows_become_questions(write, tmp_path):
    chosen = {"question_id": "q", "image": ["a.png", "a.png"], "text": "Which?", "answer": "B",
              "options": ["x", "y"]}  # fmt: skip
    one, two = own_questions.read(write(ROW, chosen))
    assert (one.id, one.text, one.images, one.truth, one.kind) == (
        "1", "Color?", (tmp_path / "a.png",), "red", "short",
    )  # fmt: skip
    assert two.options == {"A": "x", "B": "y"} and two.kind == "choice" and len(two.images) == 2


def test_case_blanks_and_a_full_stop_do_not_count(write):
    rows = [ROW | {"question_id": i} for i in range(3)] + [
        {"question_id": 3, "text": "Sum?", "answer": "4."}
    ]
    scored = own_questions.exact(own_questions.read(write(*rows)), [" RED.", "redd", "red", "4"])
    assert [score.score for score in scored.scores] == [1, 0, 1, 1]
    assert scored.figures == pytest.approx({"accuracy": 75, "accuracy/color": 200 / 3})


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "holds no question"),
        ([ROW, ROW], "the id '1' occurs twice"),
        ([ROW | {"image": "gone.png"}], "questions.jsonl:1: the image .*gone.png does not exist"),
        ([{"question_id": 1, "text": "x"}], "the field 'answer' is missing"),
        ([ROW | {"question_id": None}], "question_id is None, expected a text or a whole number"),
        ([ROW | {"image": 3}], "image is 3, expected a path or a list of paths"),
        ([ROW | {"options": ["x"]}], "answer is 'red', expected one of the letters A"),
    ],
)
def test_wrong_rows_are_refused(write, rows, message):
    with pytest.raises(ValueError, match=message):
        own_questions.read(write(*rows))
