"""The corpus of photographs: copied from packages, split by photograph, films cut into clips."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import skimage
from paths import ROOT

from emu3_jax.data import media
from emu3_jax.data.pixels.pixel_batches import PixelConfig, PixelGroup, pixel_batches
from emu3_jax.files import write_atomically

EXAMPLE = ROOT / "examples" / "photographs"


def _script():
    spec = importlib.util.spec_from_file_location("prepare_photographs", EXAMPLE / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up there
    spec.loader.exec_module(module)
    return module


photographs = _script()
FILMS, PHOTOGRAPHS, prepare = photographs.FILMS, photographs.PHOTOGRAPHS, photographs.prepare
Film, Photograph = photographs.Film, photographs.Photograph


def _photograph(name, split, file):
    return Photograph(name, split, f"pack-{name}", file, "CC0 1.0", "someone", f"a {name}")


STILLS = (_photograph("tree", "train", "a/x.png"), _photograph("dog", "validation", "b/y.png"))
SHOTS = ((0, 70), (70, 80))
FILM = Film("sea", "train", "pack-sea", "c/z.webp", "CC BY 3.0", "someone", "waves", SHOTS)


@pytest.fixture
def packages(tmp_path):
    rng = np.random.default_rng(0)
    for item in STILLS:
        media.write_png(tmp_path / "in" / item.file, rng.integers(0, 256, (9, 12, 3), np.uint8))
    frames = np.repeat(np.arange(90, dtype=np.uint8)[:, None, None, None] * 2, 3, axis=-1)
    media.write_webp(tmp_path / "in" / FILM.file, np.tile(frames, (1, 16, 24, 1)), fps=10)
    return tmp_path / "in"


def _rows(folder, split):
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def test_photographs_are_copied_and_films_cut_at_their_shots(packages, tmp_path):
    out = prepare(packages, tmp_path / "out", STILLS, (FILM,))
    for item in STILLS:
        (row,) = [row for row in _rows(out, item.split) if "image" in row]
        assert (out / row["image"]).read_bytes() == (packages / item.file).read_bytes()
        assert row["id"] == item.name and row["text"] == item.text
        assert (row["licence"], row["author"], row["package"]) == (
            item.licence,
            item.author,
            item.package,
        )
    clips = [row for row in _rows(out, "train") if "video" in row]
    assert [row["frames"] for row in clips] == [35, 35, 10]
    for row, first in zip(clips, (0, 35, 70), strict=True):
        found = media.read_video(out / row["video"])[0]
        assert found.shape == (row["frames"], 16, 24, 3) and row["seconds"] == row["frames"] / 10
        # Neighbouring frames differ by two levels; the film's own compression changes less.
        expected = 2 * np.arange(first, first + row["frames"])
        np.testing.assert_allclose(found.mean(axis=(1, 2, 3)), expected, atol=1.5)
    counts = {"train": {"stills": 1, "clips": 3}, "validation": {"stills": 1, "clips": 0}}
    assert json.loads((out / photographs.DONE).read_text()) == counts
    groups = (PixelGroup("stills", "stills", 8, 2), PixelGroup("clips", "clips", 8, 3, 8))
    batch = next(pixel_batches(PixelConfig(str(out), groups=groups)))
    assert batch["stills"].shape == (2, 8, 8, 3) and batch["clips"].shape == (3, 8, 8, 8, 3)
    assert prepare("nowhere", out) == out  # a prepared folder is kept


def test_large_films_are_scaled_down(packages, tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "CLIP_SIDE", 8)
    out = prepare(packages, tmp_path / "out", STILLS, (FILM,))
    assert media.read_video(out / "clips/sea_2.mp4")[0].shape == (10, 8, 12, 3)


def test_missing_packages_are_named_before_anything_is_written(packages, tmp_path):
    (packages / "b/y.png").unlink()
    (packages / "c/z.webp").unlink()
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"lacks pack-dog, pack-sea \(b/y.png is not there\); run"):
        prepare(packages, out, STILLS, (FILM,))
    assert not out.exists()


@pytest.mark.parametrize("kind", ["grey", "broken", "short", "not empty"])
def test_what_does_not_fit_leaves_no_half_corpus(kind, packages, tmp_path):
    out, films = tmp_path / "out", (FILM,)
    if kind == "grey":
        from PIL import Image

        Image.fromarray(np.zeros((4, 4), np.uint8)).save(packages / "b/y.png")
        message = "y.png: expected a photograph in colour, found L"
    elif kind == "broken":
        (packages / "b/y.png").write_bytes((packages / "b/y.png").read_bytes()[:60])
        message = "y.png: the image cannot be decoded"
    elif kind == "short":
        films = (Film(**{**vars(FILM), "shots": ((0, 91),)}),)
        message = "c/z.webp: 90 frames, expected at least 91"
    else:
        write_atomically(out / "mine.txt", b"keep")
        message = "out: is not empty and holds no prepared.json"
    with pytest.raises(ValueError, match=message):
        prepare(packages, out, STILLS, films)
    assert [path.name for path in tmp_path.iterdir() if path.name != "in"] == (
        ["out"] if kind == "not empty" else []
    )


def test_the_script_says_in_one_sentence_what_is_missing(tmp_path):
    command = [sys.executable, EXAMPLE / "prepare.py", f"--output={tmp_path / 'out'}"]
    root = str(EXAMPLE.parents[1])
    done = subprocess.run(
        [*command, f"--packages={tmp_path}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.returncode == 2 and "lacks scikit-image, " in done.stderr
    assert "Traceback" not in done.stderr


def test_the_table_names_what_is_there():
    items = (*PHOTOGRAPHS, *FILMS)
    assert len({item.name for item in items}) == len(items)
    lines = (EXAMPLE / "requirements.txt").read_text().splitlines()
    required = [line.split("=")[0].rstrip(">") for line in lines]
    assert {item.package for item in items} == {name for name in required if name[:1] != "#"}
    assert all(item.licence and item.author and item.text for item in items)
    held_out = [item for item in PHOTOGRAPHS if item.split == "validation"]
    assert len(PHOTOGRAPHS) >= 15 and len(held_out) >= 4
    assert {item.split for item in items} == {"train", "validation"}
    here = pathlib.Path(skimage.__file__).parents[1]
    for item in PHOTOGRAPHS:
        if item.package == "scikit-image":
            assert media.read_image(here / item.file).ndim == 3
