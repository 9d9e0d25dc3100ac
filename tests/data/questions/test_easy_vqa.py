"""easy-vqa: its files as rows and images; a wrong or missing package is named."""

import json

import pytest

from emu3_jax.data.questions import easy_vqa


def write_package(folder):
    """The layout of the package's data, with two images of a split."""
    listed = [["what shape is it?", "circle", 0], ["is there a circle?", "yes", 0],
              ["what color is it?", "red", 0], ["is there a circle?", "no", 1]]  # fmt: skip
    for split in easy_vqa.SPLITS:
        (folder / split / "images").mkdir(parents=True)
        for number in (0, 1):
            (folder / split / "images" / f"{number}.png").write_bytes(f"{split} {number}".encode())
        (folder / split / "questions.json").write_text(json.dumps(listed))


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_train_becomes_chats_and_test_single_questions(tmp_path):
    write_package(tmp_path / "data")
    counts = easy_vqa.write_questions(tmp_path / "data", tmp_path / "out")
    train, test = (rows_of(tmp_path / "out" / f"{split}.jsonl") for split in ("train", "test"))
    assert counts == {"train": len(train), "train_captions": 1, "test": 4, "test_questions": 4}
    # Only the first image's answers tell both its colour and its shape.
    assert rows_of(tmp_path / "out/train_captions.jsonl") == [
        {"id": "train-0", "image": "train/0.png", "text": "red circle"}
    ]
    assert not (tmp_path / "out/test_captions.jsonl").exists()
    assert sum(len(row["turns"]) for row in train) == 4
    assert [row["kind"] for row in test] == ["shape", "yes or no", "colour", "yes or no"]
    assert test[3]["turns"] == [
        {"image": "test/1.png", "question": "is there a circle?", "answer": "no"}
    ]
    assert (tmp_path / "out/train/1.png").read_bytes() == b"train 1"


def test_other_data_leave_nothing_behind(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match="is not the data of easy-vqa: it has no train/questions"):
        easy_vqa.write_questions(tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(easy_vqa, "PACKAGE", "no_package_of_this_name")
    with pytest.raises(ImportError, match="pip install easy-vqa"):
        easy_vqa.package_data()
