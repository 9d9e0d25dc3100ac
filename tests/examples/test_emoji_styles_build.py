"""The script that makes the corpus of four styles: splits, near twins, the same bytes again."""

import importlib.util
import sys
import zipfile

import numpy as np
import pytest
from paths import ROOT

from emu3_jax.data import emoji_styles

FILE = ROOT / "examples" / "emoji_styles" / "build.py"


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("build_emoji_styles", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # worker processes look it up there
    spec.loader.exec_module(module)
    return module


def row(emoji, base, tone=None):
    return {"id": emoji, "base": base, "tone": tone}


def test_splits_keep_a_base_together(build):
    rows = [row(f"{n}-{tone}", f"base {n}", tone) for n in range(300) for tone in (None, 1, 5)]
    ids = {r["id"] for r in rows}
    styles = {"3D": {i for i in ids if int(i.partition("-")[0]) < 200}, "Noto": ids, "flat": ids}
    known = {"0-None": "validation", "0-1": "validation", "1-5": "validation_combination"}
    chosen = build.choose_splits(rows, styles, {i: "train" for i in styles["3D"]} | known)
    of = {(r["base"], style): [] for r in rows for style in styles}
    for style, splits in chosen.items():
        for r in rows:
            of[r["base"], style].append(splits.get(r["id"]))
    assert {of["base 0", style][1] for style in styles} == {"validation"}
    assert {of["base 1", style][2] for style in styles} == {"validation_combination"}
    of = {key: set(found) for key, found in of.items() if key[0] not in ("base 0", "base 1")}
    assert all(len(found) == 1 for found in of.values())
    new = [of[f"base {n}", "flat"] for n in range(200, 300)]
    assert 3 < new.count({"validation"}) < 20
    unseen = [base for (base, _), found in of.items() if found == {"validation_style"}]
    assert 30 < len(unseen) == len(set(unseen)) < 90


def test_a_still_that_training_shows_is_not_held_out(build):
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    near = np.clip(a.astype(int) + rng.integers(-8, 9, a.shape), 0, 255).astype(np.uint8)
    images = {"3D": {"a": a, "b": b}, "Noto": {"a": near, "b": b[::-1]}}
    splits = {
        "3D": {"a": "train", "b": "train"},
        "Noto": {"a": "validation_style", "b": "validation_style"},
    }
    assert build.drop_twins(images, splits) == {"Noto, validation_style": 1}
    assert splits["Noto"] == {"b": "validation_style"}


def test_the_same_stills_give_the_same_bytes_and_come_back(build, tmp_path):
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    images = [np.stack([ramp, ramp.T, 0 * ramp + 3 * n], axis=-1) for n in range(66)]
    rows = [row(str(n), f"base {n}") for n in range(66)]
    drawn = {"Noto": {str(n): image for n, image in enumerate(images)}, "3D": {"0": images[0]}}
    splits = {style: dict.fromkeys(of, "train") for style, of in drawn.items()}
    for name in ("a.zip", "b.zip"):
        sizes = build.pack(rows, drawn, splits, {"0"}, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert sizes["noto"] < sizes["all"] == (tmp_path / "a.zip").stat().st_size
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert set(archive.namelist()) == {"concepts.jsonl", "noto/000.avif", "noto/001.avif"}
        sheets = emoji_styles._Sheets(archive)
        for n, image in enumerate(images):
            found = sheets.still(emoji_styles.Still("Noto", "train", n))
            assert np.abs(found.astype(int) - image).mean() < 4


def test_transparency_goes_on_white(build):
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.zeros((72, 72, 4), np.uint8)).save(buffer, "PNG")
    assert (build._opened(buffer.getvalue) == 255).all()


def test_names_of_icons(build):
    assert build._icon_names(row("x", "Mrs. Claus’s hat")) == (
        "mrs-clauss-hat",
        "mrs-clauss-hat-default",
    )
    assert build._icon_names(row("x", "man cook", 4)) == ("man-cook-medium-dark",)
    assert build.code_points("2764-FE0F") == "2764"
