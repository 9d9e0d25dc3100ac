"""The sag at boundaries of a made-up curve, and clips that play forwards and backwards."""

import numpy as np
import pytest

from emu3_jax.evaluate.vision.clip_boundaries import boundary_metrics, clip_boundaries, of_length


def test_a_sag_at_the_ends_of_training_clips_is_measured_in_decibels():
    slope = 30.0 - 0.1 * np.arange(32)  # a constant slope is not a boundary
    curve = slope.copy()
    curve[[7, 8]] -= 0.4
    curve[[15, 16]] -= 1.0
    found = clip_boundaries([curve], 8)
    assert [boundary.frame for boundary in found] == [8, 16, 24]
    assert [boundary.sag for boundary in found] == pytest.approx([0.4, 1.0, 0.0])
    metrics = boundary_metrics(found, "_latent")
    assert metrics == pytest.approx(
        {"boundary_db_latent": 1.4 / 3, "boundary_db_latent_worst": 1.0}
    )


def test_the_ends_of_a_clip_are_not_boundaries():
    curve = np.full(16, 30.0)
    curve[[0, 15]] = 10.0
    assert [boundary.sag for boundary in clip_boundaries([curve], 8)] == [0.0]


def test_boundaries_are_averaged_over_the_clips_that_have_them():
    short, long = np.full(8, 20.0), np.full(12, 40.0)
    short[4] -= 2.0
    long[8] -= 3.0
    found = clip_boundaries([short, long], 4)
    assert [(s.frame, s.sag) for s in found] == [(4, 0.5), (8, 1.5)]


def test_clips_that_are_too_short_have_no_boundaries():
    assert clip_boundaries([np.ones(11)], 8) == []
    assert clip_boundaries([np.ones(12)], 2) == []
    assert boundary_metrics([]) == {}


def test_clips_are_cut_or_played_to_and_fro():
    clip = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    assert of_length(clip, 3).ravel().tolist() == [0, 1, 2]
    assert of_length(clip, 11).ravel().tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2]
    assert of_length(clip[:1], 3).ravel().tolist() == [0, 0, 0]
