"""The sag at seams of a made-up curve, and clips that play to and fro."""

import numpy as np
import pytest

from emu3_jax.evaluate.vision.seams import of_length, seam_metrics, seams


def test_a_sag_at_the_ends_of_training_clips_is_measured_in_decibels():
    slope = 30.0 - 0.1 * np.arange(32)  # what fades evenly is no seam
    curve = slope.copy()
    curve[[7, 8]] -= 0.4
    curve[[15, 16]] -= 1.0
    found = seams([curve], 8)
    assert [seam.frame for seam in found] == [8, 16, 24]
    assert [seam.sag for seam in found] == pytest.approx([0.4, 1.0, 0.0])
    metrics = seam_metrics(found, "_latent")
    assert metrics == pytest.approx({"seam_db_latent": 1.4 / 3, "seam_db_latent_worst": 1.0})


def test_the_ends_of_a_clip_are_no_seams():
    curve = np.full(16, 30.0)
    curve[[0, 15]] = 10.0
    assert [seam.sag for seam in seams([curve], 8)] == [0.0]


def test_seams_are_averaged_over_the_clips_that_have_them():
    short, long = np.full(8, 20.0), np.full(12, 40.0)
    short[4] -= 2.0
    long[8] -= 3.0
    found = seams([short, long], 4)
    assert [(s.frame, s.sag) for s in found] == [(4, 0.5), (8, 1.5)]


def test_too_short_for_a_seam():
    assert seams([np.ones(11)], 8) == []
    assert seams([np.ones(12)], 2) == []
    assert seam_metrics([]) == {}


def test_clips_are_cut_or_played_to_and_fro():
    clip = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    assert of_length(clip, 3).ravel().tolist() == [0, 1, 2]
    assert of_length(clip, 11).ravel().tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2]
    assert of_length(clip[:1], 3).ravel().tolist() == [0, 0, 0]
