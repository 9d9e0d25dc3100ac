"""Released files of benchmarks with options that are not as they should be: one sentence each."""

import base64
import json

import pytest

from emu3_jax.evaluate.benchmarks.choices import (
    ai2d,
    mmbench,
    mmmu,
    realworldqa,
    scienceqa,
    seedbench,
)

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

IMAGE = base64.b64encode(bytes(range(90))).decode()


def table(path, *rows):
    header = list(rows[0])
    lines = [header, *([str(row[name]) for name in header] for row in rows)]
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    return path


def row(index=1, **cells):
    return {
        "index": index,
        "image": IMAGE,
        "question": "What?",
        "A": "x",
        "B": "y",
        "answer": "B",
    } | cells


def write_parquet(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


BAD_TABLES = {
    "row 2: the image is not base64": [row(1), row(2, image="*" * 100)],
    "row 2: the image '' is neither base64 nor the index": [row(1), row(2, image="")],
    "row 2: the image '7' is neither base64 nor the index": [row(1), row(2, image="7")],
    "row 2: the question has no options": [row(1), row(2, A="", B="")],
    "row 1: the answer is 'C', expected one of A, B": [row(answer="C")],
    "the id '1' occurs twice": [row(1), row(1)],
    "the column 'question' is missing": [{"index": 1, "image": IMAGE, "A": "x", "answer": "A"}],
}


@pytest.mark.parametrize(("sentence", "rows"), BAD_TABLES.items())
@pytest.mark.parametrize("read", [mmbench.read, ai2d.read])
def test_bad_tables(tmp_path, read, sentence, rows):
    path = table(tmp_path / "table.tsv", *rows)
    with pytest.raises(ValueError, match=sentence) as error:
        read(path)
    assert str(path) in str(error.value)


def test_bad_tables_of_mmbench(tmp_path):
    bad = {
        "index is 'one', expected a whole number": [row("one")],
        "index 1000002 is a copy of question 2, which the file does not have": [
            row(1),
            row(1000002),
        ],
        "expected an answer in all rows or in none": [row(1), row(2, answer="")],
    }
    for sentence, rows in bad.items():
        with pytest.raises(ValueError, match=sentence):
            mmbench.read(table(tmp_path / "table.tsv", *rows))
    with pytest.raises(ValueError, match="MMBench_DEV_CN.tsv does not exist"):
        mmbench.read(tmp_path, "DEV_CN")


def test_a_shared_image_may_stand_further_down(tmp_path):
    first, second = mmbench.read(table(tmp_path / "t.tsv", row(1, image="2"), row(2)))
    assert first.images == second.images == (bytes(range(90)),)


def test_no_table(tmp_path):
    for read, name in ((ai2d.read, ai2d.TABLE), (realworldqa.read, realworldqa.TABLE)):
        with pytest.raises(ValueError, match=f"expected {name}, or data/test-"):
            read(tmp_path)


def ai2d_row(**cells):
    return {
        "question": "What?",
        "options": ["x", "y"],
        "answer": "1",
        "image": {"bytes": b"image"},
    } | cells


def test_bad_parquet_of_ai2d(tmp_path):
    bad = {
        "row 1: the question has no options": ai2d_row(options=[], answer="0"),
        "the answer is '2', expected one of A, B": ai2d_row(answer="2"),
        "the image has no bytes": ai2d_row(image={"bytes": b""}),
        "answer is 1, expected text": ai2d_row(answer=1),
    }
    for number, (sentence, cells) in enumerate(bad.items()):
        folder = tmp_path / str(number)
        rows = [cells] if "answer is 1," in sentence else [ai2d_row(), cells]
        write_parquet(folder / "data/test-00000-of-00001.parquet", *rows)
        with pytest.raises(ValueError, match=sentence):
            ai2d.read(folder)


def test_options_of_realworldqa_stand_in_its_questions(tmp_path):
    text = "Where?\n\nA. Left\nB. Right\nPlease answer directly with only the letter."
    rows = [
        {"question": text, "answer": "B", "image": {"bytes": b"1"}},
        {"question": "How many?", "answer": "2", "image": {"bytes": b"2"}},
    ]
    write_parquet(tmp_path / "data/test-00000-of-00001.parquet", *rows)
    first, second = realworldqa.read(tmp_path)
    assert (first.text, first.options) == (text, {"A": "Left", "B": "Right"})
    assert (second.text, second.options) == ("How many?", {})


def seed_row(**cells):
    names = {"choice_a": "a", "choice_b": "b", "choice_c": "c", "choice_d": "d"}
    return {
        "question_id": "1", "question": "What?", "answer": "A", "data_type": "image",
        "data_id": "7_8", "question_type_id": 1, **names,
    } | cells  # fmt: skip


def test_bad_files_of_seedbench(tmp_path):
    (tmp_path / "SEED-Bench-image").mkdir()
    (tmp_path / "SEED-Bench-image/7_8").write_bytes(b"image")
    no_options = {f"choice_{letter}": "" for letter in "abcd"}
    bad = {
        "question 2: the question has no options": seed_row(question_id="2", **no_options),
        "question 2: the answer is 'E', expected one of A, B, C, D": seed_row(answer="E"),
        "question 2: the image .*9_9 does not exist": seed_row(data_id="9_9"),
        "the id '1' occurs twice": seed_row(),
        "question_type_id 4 is not in question_type": seed_row(question_type_id=4),
        "data_type is 'sound', expected 'image' or 'video'": seed_row(data_type="sound"),
    }
    for sentence, cells in bad.items():
        content = {"question_type": {"Scene": 1}, "questions": [seed_row(), cells]}
        (tmp_path / "SEED-Bench.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=sentence):
            seedbench.read(tmp_path)


def science_row(**cells):
    return {
        "question": "What?",
        "choices": ["x", "y"],
        "answer": 1,
        "hint": "",
        "image": None,
    } | cells


def test_bad_files_of_scienceqa(tmp_path):
    bad = {
        "'1': the image .*image.png does not exist": ["1", science_row(image="image.png")],
        "'1': the question has no options": ["1", science_row(choices=[], answer=0)],
        "'1': the answer is '2', expected one of A, B": ["1", science_row(answer=2)],
        "'1': 6 choices, expected at most 5": ["1", science_row(choices=list("abcdef"))],
        "'1': the question is missing; .*pid_splits.json has it": ["2", science_row()],
        "holds no question": ["1", science_row()],
    }
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": ["1"]}))
    for sentence, (key, problem) in bad.items():
        (tmp_path / "problems.json").write_text(json.dumps({key: problem}))
        with pytest.raises(ValueError, match=sentence):
            scienceqa.read(tmp_path)
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": ["1", "1"]}))
    with pytest.raises(ValueError, match="the id '1' occurs twice"):
        scienceqa.read(tmp_path, scienceqa.ALL)


def mmmu_row(key="1", **cells):
    images = {f"image_{number}": None for number in range(2, 8)}
    return {
        "id": key, "question": "<image 1> What?", "options": "['x', 'y']", "answer": "B",
        "question_type": "multiple-choice", "image_1": {"bytes": b"image"}, **images,
    } | cells  # fmt: skip


def test_bad_files_of_mmmu(tmp_path):
    bad = {
        "the question has no options": mmmu_row("2", options="[]"),
        "options is 'x, y', expected the text of a list": mmmu_row("2", options="x, y"),
        "the answer is 'C', expected one of A, B": mmmu_row("2", answer="C"),
        "shows <image 2>, but it has 1 images": mmmu_row("2", question="What is <image 2>?"),
        "image_1 is missing": mmmu_row("2", image_1=None),
        "question_type is 'essay', expected one of": mmmu_row("2", question_type="essay"),
        "the id '1' occurs twice": mmmu_row("1"),
    }
    for number, (sentence, cells) in enumerate(bad.items()):
        folder = tmp_path / str(number)
        write_parquet(folder / "Math/validation-00000-of-00001.parquet", mmmu_row(), cells)
        with pytest.raises(ValueError, match=sentence):
            mmmu.read(folder)
    with pytest.raises(ValueError, match="holds no question"):
        mmmu.read(tmp_path)
