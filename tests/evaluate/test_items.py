"""Rows and files that cannot be used: left out, counted, listed; the figure is that of the rest."""

import json

import evaluation_stand_ins as parts
import numpy as np
import pytest

from emu3_jax.config import ConfigError
from emu3_jax.data import media
from emu3_jax.evaluate import items
from emu3_jax.evaluate.evaluator import Subject
from emu3_jax.evaluate.vision.codebook_health import CodebookHealth
from emu3_jax.evaluate.vision.reconstruction import Reconstruction

SUBJECT = Subject(vision_tokenizer=(parts.GreyTokenizer(), {}))
CONFIG = parts.GreyConfig()


def split(folder, count=8):
    """Images in a split of a new folder; returns its rows."""
    folder.mkdir()
    rows = []
    for i in range(count):
        pixels = np.full((parts.SIDE, parts.SIDE, 3), 20 * i, np.uint8)
        pixels[: i + 2] = 255
        media.write_png(folder / f"{i}.png", pixels)
        rows.append({"id": str(i), "image": f"{i}.png", "text": f"image {i}"})
    write(folder, rows)
    return rows


def write(folder, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "validation.jsonl").write_text("".join(line + "\n" for line in lines))


@pytest.fixture
def damaged(tmp_path):
    """(with a cut file, a missing one, a tiny one and a row that is not JSON; the rest alone)."""
    rows = split(tmp_path / "damaged")
    kept = [row for i, row in enumerate(rows) if i not in (2, 5, 6)]
    split(tmp_path / "rest")
    write(tmp_path / "rest", kept)
    cut = tmp_path / "damaged" / "5.png"
    cut.write_bytes(cut.read_bytes()[:-40])
    (tmp_path / "damaged" / "2.png").unlink()
    media.write_png(tmp_path / "damaged" / "6.png", np.zeros((3, 9, 3), np.uint8))
    write(tmp_path / "damaged", [*rows, "this is not JSON"])
    return tmp_path / "damaged", tmp_path / "rest"


@pytest.mark.parametrize("cls", [Reconstruction, CodebookHealth])
def test_what_cannot_be_used_is_left_out_counted_and_listed(cls, damaged):
    evaluators = [cls(data=str(folder), batch_size=4) for folder in damaged]
    evaluators[0].check(None)
    found, rest = (evaluator.run(SUBJECT) for evaluator in evaluators)
    assert found.metrics["items_skipped"] == 4 and rest.metrics["items_skipped"] == 0
    assert dict(found.metrics) | {"items_skipped": 0} == dict(rest.metrics)
    listed = [note for note in found.notes if note.startswith("left out: ")]
    for line, reason in ((3, "2.png"), (6, "5.png"), (7, "smaller than one token"), (9, "JSON")):
        assert any(f"validation.jsonl:{line}: " in note and reason in note for note in listed)
    assert len(listed) == 4 and not any(note.startswith("left out: ") for note in rest.notes)


def test_a_limit_takes_the_first_usable_ones(damaged):
    reader = items.Reader(CONFIG)
    chosen = reader.read_split(damaged[0], "validation", 4)
    assert [item.key for item in chosen] == ["0", "1", "3", "4"]
    assert reader.rows == 9 and len(reader.skipped) == 2


def test_too_many_are_an_error_with_the_first_reason(tmp_path):
    rows = split(tmp_path / "data")
    folder = tmp_path / "data"
    write(folder, [*rows, *["{"] * 5])
    Reconstruction(data=str(folder)).check(None)
    write(folder, [*rows, *["{"] * 6])
    with pytest.raises(ConfigError, match=r"6 of 14 rows cannot be used.*jsonl:9: not a JSON"):
        Reconstruction(data=str(folder)).check(None)
    write(folder, rows)
    for i in range(6):
        (folder / f"{i}.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"6 of 8 rows cannot be used.*jsonl:1: .*0.png"):
        Reconstruction(data=str(folder)).run(SUBJECT)


def test_images_for_a_language_model_are_resized_as_in_its_training(tmp_path):
    split(tmp_path / "data", 1)
    trained = {"min_pixels": 32 * 32, "max_pixels": 40 * 40}
    (item,) = items.Reader(CONFIG, trained).read_split(tmp_path / "data", "validation")
    limits = media.PixelLimits(32 * 32, 40 * 40, CONFIG.spatial_factor)
    size = media.smart_resize(parts.SIDE, parts.SIDE, limits)
    expected = media.resize(media.read_image(item.path), *size)
    assert size != (parts.SIDE, parts.SIDE)
    np.testing.assert_array_equal(item.pixels, expected)
    (item,) = items.Reader(CONFIG, {}).read_split(tmp_path / "data", "validation")
    np.testing.assert_array_equal(item.pixels, media.read_image(item.path))


@pytest.mark.parametrize("cls", [Reconstruction, CodebookHealth])
def test_a_vision_tokenizer_is_measured_at_the_size_of_tokenizing(cls, tmp_path):
    folder, larger = tmp_path / "data", tmp_path / "larger"
    rows = split(folder, 2)
    larger.mkdir()
    limits = media.PixelLimits(32 * 32, 40 * 40, CONFIG.spatial_factor)
    for row in rows:
        pixels = media.read_image(folder / row["image"])
        size = media.smart_resize(*pixels.shape[:2], limits)
        media.write_png(larger / row["image"], media.resize(pixels, *size))
    write(larger, rows)
    found = cls(data=str(folder), min_pixels=32 * 32, max_pixels=40 * 40).run(SUBJECT)
    assert dict(found.metrics) == dict(cls(data=str(larger)).run(SUBJECT).metrics)
    assert dict(found.metrics) != dict(cls(data=str(folder)).run(SUBJECT).metrics)
    with pytest.raises(ValueError, match="expected 0 < min_pixels <= max_pixels"):
        cls(data=str(folder), max_pixels=64)
