"""Reconstruction: its figures against figures computed by hand."""

import dataclasses

import evaluation_stand_ins as parts
import numpy as np
import pytest

from emu3_jax.data import vision_codec
from emu3_jax.evaluate import items, picture_quality, reconstruction
from emu3_jax.evaluate.evaluator import Subject


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    parts.write_corpus(folder)
    return Subject(vision_tokenizer=(parts.GreyTokenizer(), {}), data=folder, batch_size=2)


@pytest.fixture(scope="module")
def result(subject):
    return reconstruction.Reconstruction("validation_combination").run(subject)


def grey(picture):
    """What the stand-in makes of uint8 [H, W, 3], in numpy."""
    cells = (picture / 127.5 - 1).mean(-1).reshape(4, 4, 4, 4).mean((1, 3))
    level = (np.clip((cells + 1) * 16, 0, 31).astype(int) + 0.5) / 16 - 1
    value = ((level / 2 + 0.5) * 255).astype(np.uint8)
    return np.repeat(value.repeat(4, 0).repeat(4, 1)[..., None], 3, -1)


def test_quality_of_stills_is_the_mean_over_pictures(subject, result):
    stills = items.read_images(subject.data, "validation_combination")
    expected = np.mean([picture_quality.psnr(i.pixels, grey(i.pixels)) for i in stills])
    assert result.metrics["psnr_images"] == pytest.approx(expected, abs=1e-6)
    expected = np.mean([picture_quality.ssim(i.pixels, grey(i.pixels)) for i in stills])
    assert result.metrics["ssim_images"] == pytest.approx(expected, abs=1e-6)
    assert result.metrics["count_images"] == 3
    assert result.metrics["count_clips"] == 1


def test_clips_are_measured_frame_by_frame(result):
    table = result.tables["psnr_by_frame"]
    assert [row[0] for row in table.rows] == list(range(8))
    mean = np.mean([row[1] for row in table.rows])
    assert mean == pytest.approx(result.metrics["psnr_clips"], abs=1e-3)


def test_batches_do_not_change_the_figures(subject, result):
    larger = dataclasses.replace(subject, batch_size=5)
    again = reconstruction.Reconstruction("validation_combination").run(larger)
    assert again.metrics == pytest.approx(dict(result.metrics))


def test_codebook_use_counts_codes_of_the_split_and_of_all_splits(subject, result):
    seen = set()
    for split in ("train", "validation", "validation_combination"):
        chosen = [i.pixels for i in items.read_split(subject.data, split)]
        for codes in vision_codec.encode(subject.vision_tokenizer, chosen, 4):
            seen |= set(codes.ravel().tolist())
    assert result.metrics["codebook_used_corpus"] == pytest.approx(100 * len(seen) / 64)
    assert (
        result.metrics["codebook_used_validation_combination"]
        <= (result.metrics["codebook_used_corpus"])
    )


def test_perplexity_of_the_codes():
    even = reconstruction.codebook_metrics([np.array([[0, 1], [2, 3]])], 8, "x")
    assert even == pytest.approx({"codebook_used_x": 50.0, "codebook_perplexity_x": 4.0})
    one = reconstruction.codebook_metrics([np.full((4, 4), 5)], 8, "x")
    assert one == pytest.approx({"codebook_used_x": 12.5, "codebook_perplexity_x": 1.0})


def test_sheets_show_originals_above_reconstructions(subject, result):
    first = items.read_images(subject.data, "validation_combination")[0].pixels
    sheet = result.pictures["images"]
    assert np.array_equal(sheet[4:20, 4:20], first)
    assert np.array_equal(sheet[24:40, 4:20], grey(first))


def test_pictures_are_cut_to_whole_tokens():
    config = parts.GreyConfig()
    assert vision_codec.whole_tokens(config, np.zeros((19, 17, 3), np.uint8)).shape == (16, 16, 3)
    assert vision_codec.whole_tokens(config, np.zeros((6, 8, 8, 3), np.uint8)).shape[0] == 4
    with pytest.raises(ValueError, match="smaller than one token"):
        vision_codec.whole_tokens(config, np.zeros((3, 8, 8, 3), np.uint8))


def test_what_is_missing_is_named(subject):
    evaluator = reconstruction.Reconstruction()
    with pytest.raises(ValueError, match="--vision_tokenizer"):
        evaluator.run(Subject(data=subject.data))
    with pytest.raises(ValueError, match="no split 'test'.*train, validation"):
        reconstruction.Reconstruction("test").run(subject)
    with pytest.raises(ValueError, match="'text' holds no image"):
        reconstruction.Reconstruction("text").run(subject)
