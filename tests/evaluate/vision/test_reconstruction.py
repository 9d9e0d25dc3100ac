"""Reconstruction: its figures against figures computed by hand."""

import dataclasses
import json
import re
import shutil

import conftest
import evaluation_stand_ins as parts
import jax
import numpy as np
import pytest

from emu3_jax.data import media
from emu3_jax.data.codec import vision_codec
from emu3_jax.evaluate import items
from emu3_jax.evaluate.evaluator import Subject
from emu3_jax.evaluate.vision import codebook_use, measured, psnr_ssim, published, reconstruction
from emu3_jax.interop.vision import perceptual_weights
from emu3_jax.models.features import lpips


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    parts.write_corpus(folder)
    return folder


SUBJECT = Subject(vision_tokenizer=(parts.GreyTokenizer(), {}))


@pytest.fixture(scope="module")
def evaluator(folder):
    return reconstruction.Reconstruction(
        data=str(folder), splits=("validation_combination",), batch_size=2
    )


@pytest.fixture(scope="module")
def result(evaluator):
    return evaluator.run(SUBJECT)


def grey(image):
    """What the stand-in makes of uint8 [H, W, 3], in numpy."""
    cells = (image / 127.5 - 1).mean(-1).reshape(4, 4, 4, 4).mean((1, 3))
    level = (np.clip((cells + 1) * 16, 0, 31).astype(int) + 0.5) / 16 - 1
    value = ((level / 2 + 0.5) * 255).astype(np.uint8)
    return np.repeat(value.repeat(4, 0).repeat(4, 1)[..., None], 3, -1)


def test_quality_of_stills_is_the_mean_over_images(folder, result):
    stills = items.Reader().read_images(folder, "validation_combination")
    expected = np.mean([psnr_ssim.psnr(i.pixels, grey(i.pixels)) for i in stills])
    assert result.metrics["psnr_images"] == pytest.approx(expected, abs=1e-6)
    expected = np.mean([psnr_ssim.ssim(i.pixels, grey(i.pixels)) for i in stills])
    assert result.metrics["ssim_images"] == pytest.approx(expected, abs=1e-6)
    assert result.metrics["count_images"] == 3
    assert result.metrics["count_clips"] == 1


def test_clips_are_measured_frame_by_frame(result):
    table = result.tables["by_frame"]
    assert [row[0] for row in table.rows] == list(range(8))
    mean = np.mean([row[1] for row in table.rows])
    assert mean == pytest.approx(result.metrics["psnr_clips"], abs=1e-3)


def test_batches_do_not_change_the_figures(evaluator, result):
    again = dataclasses.replace(evaluator, batch_size=5).run(SUBJECT)
    assert again.metrics == pytest.approx(dict(result.metrics))


def test_a_split_that_was_not_asked_for_does_not_cost_the_figures(folder, evaluator, tmp_path):
    """Its codes are part of one figure only, which says so; and it is read after all the work."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    rows = [{"id": i, "image": "a.jpg", "conversations": [{"from": "human"}]} for i in range(9)]
    usable = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "other.jsonl").write_text(usable + "\n".join(map(json.dumps, rows)))
    again = dataclasses.replace(evaluator, data=str(tmp_path)).run(SUBJECT)
    assert again.metrics == pytest.approx(dict(evaluator.run(SUBJECT).metrics))
    (note,) = (note for note in again.notes if "other" in note)
    assert re.match(r"without the split other: 9 of \d\d rows cannot", note)
    with pytest.raises(ValueError, match=r"9 of \d\d rows cannot be used"):
        dataclasses.replace(evaluator, data=str(tmp_path), splits=("other",)).run(SUBJECT)


def test_codebook_use_counts_codes_of_the_split_and_of_all_splits(folder, result):
    seen = set()
    for split in ("train", "validation", "validation_combination"):
        chosen = [i.pixels for i in items.Reader().read_split(folder, split)]
        for codes in vision_codec.encode(SUBJECT.vision_tokenizer, chosen, 4):
            seen |= set(codes.ravel().tolist())
    assert result.metrics["codebook_used_corpus"] == pytest.approx(100 * len(seen) / 64)
    assert (
        result.metrics["codebook_used_validation_combination"]
        <= (result.metrics["codebook_used_corpus"])
    )


def test_an_image_with_two_captions_counts_once(folder, evaluator, result, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.copy(tmp_path / "train.jsonl", tmp_path / "train_zh.jsonl")
    again = dataclasses.replace(evaluator, data=str(tmp_path)).run(SUBJECT)
    assert again.metrics == pytest.approx(dict(result.metrics))


@pytest.fixture(scope="module")
def long(evaluator):
    """With a perceptual distance, clips of 32 frames, training clips of 8."""
    extended = dataclasses.replace(evaluator, perceptual="toy", frames=32, clip_frames=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perceptual_weights, "load", lambda file: parts.tiny_perceptual())
        return extended.run(SUBJECT)


def test_several_splits_are_one_pool(evaluator, result):
    both = dataclasses.replace(evaluator, splits=("validation", "validation_combination"))
    metrics = both.run(SUBJECT).metrics
    other = dataclasses.replace(evaluator, splits=("validation",)).run(SUBJECT).metrics
    assert metrics["count_images"] == 5
    expected = (3 * result.metrics["psnr_images"] + 2 * other["psnr_images"]) / 5
    assert metrics["psnr_images"] == pytest.approx(expected)
    assert metrics["codebook_used_corpus"] == result.metrics["codebook_used_corpus"]
    assert "codebook_used_validation_validation_combination" in metrics


def test_perceptual_distance_is_the_mean_over_images(folder, result, long):
    weights, sentence = parts.tiny_perceptual()
    stills = [i.pixels for i in items.Reader().read_images(folder, "validation_combination")]
    a, b = (media.to_model(np.stack(side)) for side in (stills, [grey(s) for s in stills]))
    expected = float(np.mean(jax.jit(lpips.lpips)(weights, a, b)))
    assert expected > 1e-3
    # float32 sums in two batches instead of one
    assert long.metrics["perceptual_images"] == pytest.approx(expected, rel=1e-5)
    frames = [row[3] for row in long.tables["by_frame"].rows]
    assert long.metrics["perceptual_clips"] == pytest.approx(np.mean(frames), abs=1e-4)
    assert sentence in long.notes
    assert "perceptual_images" not in result.metrics
    assert any("no perceptual distance" in note for note in result.notes)


def test_long_clips_are_measured_by_frame_and_at_their_clip_boundaries(result, long):
    table = long.tables["by_frame"]
    assert table.columns == ("frame", "psnr", "ssim", "perceptual", "clips")
    assert [row[0] for row in table.rows] == list(range(32))
    curve = [row[1] for row in table.rows]
    found = [row[:2] for row in long.tables["clip_boundaries"].rows]
    assert found == [(8, k) for k in (8, 16, 24)] + [(4, k) for k in range(4, 32, 4)]
    inside = np.mean([*curve[1:7], *curve[9:15]])
    assert long.tables["clip_boundaries"].rows[0][4] == pytest.approx(
        inside - np.mean(curve[7:9]), abs=2e-3
    )
    assert {
        "boundary_db",
        "boundary_db_worst",
        "boundary_db_latent",
        "boundary_db_latent_worst",
    } <= set(long.metrics)
    assert "boundary_db" not in result.metrics
    assert any("--clip_frames" in note for note in result.notes)


def test_clips_are_shown_beside_their_reconstructions(result):
    film = result.clips["clips"]
    assert film.shape == (8, 16 + 8, 2 * 16 + 12, 3)
    shown = film[5, 4:20]
    assert np.array_equal(shown[:, 24:40].std(-1), np.zeros((16, 16)))  # rebuilt: grey
    assert shown[:, 4:20].std(-1).max() > 0


def test_sizes_that_differ_have_rows_of_their_own():
    rng = np.random.default_rng(0)
    large, small = (rng.integers(0, 256, (s, s, 3), np.uint8) for s in (24, 16))
    rebuilt = [large // 2, small, small // 2]
    found = measured.measure([large, small, small], rebuilt, None, 4)
    rows = found.by_size("images")
    assert [row[:4] for row in rows] == [("images", 16, 16, 2), ("images", 24, 24, 1)]
    assert rows[1][4] == pytest.approx(psnr_ssim.psnr(large, large // 2), abs=1e-3)
    twice = psnr_ssim.IDENTICAL_DB + psnr_ssim.psnr(small, small // 2)
    assert rows[0][4] == pytest.approx(twice / 2, abs=1e-3)


def test_each_clip_gets_the_distances_of_its_own_frames(monkeypatch):
    toy = lambda _, pairs, sizes: np.abs(pairs[..., :3] - pairs[..., 3:]).mean((1, 2, 3))  # noqa: E731
    monkeypatch.setattr(measured, "_distance", toy)
    clips = [np.zeros((t, 16, 16, 3), np.uint8) for t in (2, 3)]
    rebuilt = [clip + np.uint8(51 * (i + 1)) for i, clip in enumerate(clips)]
    found = measured.measure(clips, rebuilt, ((), "a toy"), 4).values["perceptual"]
    assert [len(curve) for curve in found] == [2, 3]
    # 51 of 255 is 0.4 of [-1, 1], in float32.
    assert [curve.mean() for curve in found] == pytest.approx([0.4, 0.8], rel=1e-6)


def test_our_figures_stand_above_published_ones(result):
    table = result.tables["published"]
    psnr, size = table.columns.index("psnr"), table.columns.index("size")
    assert table.rows[0][psnr] == pytest.approx(result.metrics["psnr_images"], abs=1e-3)
    assert table.rows[0][size] == "16x16"
    published_sizes = [r[size] for r in table.rows if r[0].startswith("Emu3,")]
    assert published_sizes == [f"{s}x{s}" for s in (128, 256, 512, 720)]


def test_the_document_holds_the_published_figures():
    text = (conftest.GOLDEN.parents[1] / "docs/how_to/evaluation.md").read_text()
    assert published.markdown(published.beside([])) in text


def test_perplexity_of_the_codes():
    even = codebook_use.codebook_metrics([np.array([[0, 1], [2, 3]])], 8, "x")
    assert even == pytest.approx({"codebook_used_x": 50.0, "codebook_perplexity_x": 4.0})
    one = codebook_use.codebook_metrics([np.full((4, 4), 5)], 8, "x")
    assert one == pytest.approx({"codebook_used_x": 12.5, "codebook_perplexity_x": 1.0})


def test_sheets_show_originals_above_reconstructions(folder, result):
    first = items.Reader().read_images(folder, "validation_combination")[0].pixels
    sheet = result.images["images"]
    assert np.array_equal(sheet[4:20, 4:20], first)
    assert np.array_equal(sheet[24:40, 4:20], grey(first))


def test_images_are_cut_to_whole_tokens():
    config = parts.GreyConfig()
    assert vision_codec.whole_tokens(config, np.zeros((19, 17, 3), np.uint8)).shape == (16, 16, 3)
    assert vision_codec.whole_tokens(config, np.zeros((6, 8, 8, 3), np.uint8)).shape[0] == 4
    with pytest.raises(ValueError, match="smaller than one token"):
        vision_codec.whole_tokens(config, np.zeros((3, 8, 8, 3), np.uint8))
    for wrong in (np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8)):
        with pytest.raises(ValueError, match=r"images must be uint8 \[H, W, 3\] .* found "):
            vision_codec.whole_tokens(config, wrong)


def test_what_is_missing_is_named(evaluator):
    with pytest.raises(ValueError, match="data is not set; reconstruction needs it"):
        reconstruction.Reconstruction().run(SUBJECT)
    for split, message in (
        ("test", "no split 'test'.*train, validation"),
        ("text", "'text' holds no image"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(evaluator, splits=(split,)).run(SUBJECT)
