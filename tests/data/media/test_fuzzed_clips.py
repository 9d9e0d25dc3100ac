"""Damaged clips end in a MediaError or in frames, whatever the damage. Seeded."""

import numpy as np
import pytest
from films import animation, clip_pixels, film, mutated

from emu3_jax.data import media
from emu3_jax.data.media import MediaError

CLIPS = {
    "MP4": lambda: film(pixels=clip_pixels(8)),
    "Matroska": lambda: film("matroska", pixels=clip_pixels(8)),
    "WebM": lambda: film("webm", "libvpx", clip_pixels(8)),
    "GIF": lambda: animation("GIF", clip_pixels(8), 125),
}
LIMIT = 1 << 22  # pixels of a clip; the real limit would fill the memory of a small machine


def _read_damaged(kind: str, seed: int, count: int) -> int:
    """The number of damaged clips that were read."""
    rng, whole, taken = np.random.default_rng(seed), CLIPS[kind](), 0
    for number in range(count):
        content = mutated(whole, rng)
        fps, max_frames = [(None, None), (8.0, None), (3.0, 4), (60.0, None)][number % 4]
        try:
            frames, rate, seconds = media.read_video(content, fps, max_frames, "damaged")
        except MediaError as error:
            assert str(error).startswith("damaged: ")
            continue
        assert frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[-1] == 3
        assert 0 < frames[..., 0].size <= LIMIT and rate > 0 and seconds > 0
        taken += 1
    return taken


@pytest.fixture(autouse=True)
def small_limit(monkeypatch):
    monkeypatch.setattr("emu3_jax.data.media.sizes.MAX_CLIP_PIXELS", LIMIT)


@pytest.mark.parametrize("kind", CLIPS)
def test_damaged_clips(kind):
    assert _read_damaged(kind, 0, 500) < 500


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLIPS)
def test_many_damaged_clips(kind):
    assert _read_damaged(kind, 1, 12_500) < 12_500
