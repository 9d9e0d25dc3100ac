"""Edits: what a model is asked, and the figures of one that is right and of one that copies."""

import json
import shutil
import types

import evaluation_stand_ins as parts
import numpy as np
import pytest

from emu3_jax.config import ConfigError
from emu3_jax.data import emoji_documents, media
from emu3_jax.data.codec import vision_codec
from emu3_jax.evaluate.emoji import edits
from emu3_jax.evaluate.emoji.edits import EmojiEdits
from emu3_jax.evaluate.evaluator import Subject
from emu3_jax.generate import modalities
from emu3_jax.sequence import Text
from emu3_jax.train import weights

TOKENIZER = (parts.GreyTokenizer(), {})
SUBJECT = Subject(language_model=types.SimpleNamespace(media={}))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three persons of five tones; one tone of each is held out: the target of four edits."""
    folder = tmp_path_factory.mktemp("edits")
    parts.write_corpus(folder)
    for path in folder.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row.update(base=row["text"].split(":")[0], tone=row.get("tone") or 0, seconds=1)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = emoji_documents.write_documents(folder)
    # And one edit turns the woman into the man who is held out, and one the man into the woman.
    assert written["edits_validation_combination"] == 3 * 4 + 2
    return folder


@pytest.fixture
def evaluator(corpus, monkeypatch):
    monkeypatch.setattr(weights, "load_vision_tokenizer", lambda path: TOKENIZER)
    return EmojiEdits(
        data=str(corpus), vision_tokenizer="grey", splits=("validation_combination",), shown=3
    )


def test_a_model_that_is_right(evaluator, corpus, monkeypatch):
    rows, problems = edits.read_edits(corpus, "validation_combination")
    assert not problems
    asked = []

    def right(bundle, prompts, sizes, options):
        asked.extend(prompts)
        targets = [media.read_image(row.target) for row in rows]
        assert sizes == [(4, 4)] * len(rows)
        return vision_codec.encode(TOKENIZER, targets, 4)

    monkeypatch.setattr(modalities, "draw_images", right)
    result = evaluator.run(SUBJECT)
    sources = vision_codec.encode(TOKENIZER, [media.read_image(row.source) for row in rows], 4)
    for (image, text), row, codes in zip(asked, rows, sources, strict=True):
        assert text == Text(row.instruction)
        assert np.array_equal(image.codes, codes)
    found = result.metrics
    assert found["edits"] == len(rows) and found["gallery"] == 3
    for kind in ("", "_tone", "_person"):
        for figure in ("recall_at_1", "median_rank", "nearer"):
            assert found[figure + kind] == found[figure + kind + "_ceiling"]
        assert found[f"nearer{kind}_copy"] == 0
    # The shirts of man and woman are of one brightness, which is all that this tokenizer keeps.
    assert found["nearer_tone"] > 90 and found["nearer_person"] == 0
    assert found["recall_at_1_chance"] == pytest.approx(100 / 3)
    assert found["recall_at_5_chance"] == 100
    assert {row[2] for row in result.tables["ranks"].rows} == {"tone", "person"}
    assert result.images["drawn"].shape == (3 * 20 + 4, 3 * 20 + 4, 3)


def test_a_model_that_copies(evaluator, monkeypatch):
    def copy(bundle, prompts, sizes, options):
        return [image.codes for image, _ in prompts]

    monkeypatch.setattr(modalities, "draw_images", copy)
    found = evaluator.run(SUBJECT).metrics
    assert found["nearer"] == 0
    assert found["recall_at_1"] == found["recall_at_1_copy"]


def test_rows_that_cannot_be_used_are_left_out_and_listed(corpus, tmp_path, monkeypatch):
    folder = shutil.copytree(corpus, tmp_path / "corpus")
    file = folder / "edits_validation_combination.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    (folder / "broken.png").write_bytes(b"")
    bad = [
        {"source": [rows[0]["source"]] * 2, "instruction": "x", "target": rows[0]["target"]},
        {"source": "broken.png", "instruction": "x", "target": rows[0]["target"]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in (*bad, *rows)))
    monkeypatch.setattr(weights, "load_vision_tokenizer", lambda path: TOKENIZER)
    monkeypatch.setattr(
        modalities, "draw_images", lambda b, prompts, *_: [i.codes for i, _ in prompts]
    )
    found = EmojiEdits(
        data=str(folder), vision_tokenizer="grey", splits=("validation_combination",)
    ).run(SUBJECT)
    assert found.metrics["edits"] == len(rows) and found.metrics["items_skipped"] == len(bad)
    assert any("of one image" in note for note in found.notes)
    assert any("broken.png" in note for note in found.notes)


def test_figures_by_hand():
    gallery = np.array([[0.0], [4.0]])
    found = {"": np.array([[0.1], [0.0], [3.0]]), "_copy": np.array([[1.0], [1.0], [3.0]])}
    metrics = edits.edit_metrics([["tone"], ["style", "a"], ["style"]], found, gallery, [0, 1, 1])
    assert metrics["recall_at_1"] == pytest.approx(200 / 3)
    assert metrics["recall_at_1_tone"] == 100 and metrics["recall_at_1_style"] == 50
    assert metrics["nearer"] == pytest.approx(100 / 3) and metrics["nearer_style"] == 0
    assert metrics["nearer_copy"] == metrics["recall_at_1_a"] == 0


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (None, "edits_train"),
        ({"source": "moon.png", "target": "moon.png"}, "instruction"),
        ({"source": ["moon.png"] * 2, "instruction": "x", "target": "moon.png"}, "of one image"),
    ],
)
def test_edits_that_cannot_be_read(evaluator, tmp_path, row, named):
    if row:
        (tmp_path / "edits_train.jsonl").write_text(json.dumps(row) + "\n")
        (tmp_path / "moon.png").write_bytes(b"")
    wrong = EmojiEdits(data=str(tmp_path), vision_tokenizer="grey", splits=("train",))
    with pytest.raises(ConfigError, match=f"data=.*{named}"):
        wrong.check(None)
