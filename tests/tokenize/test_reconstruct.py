"""Files to codes and back: tiles, causal and independent clips, the command."""

import subprocess
import sys

import numpy as np
import pytest
from evaluation_stand_ins import GreyTokenizer

from emu3_jax.data import media
from emu3_jax.data.codec import tiling, vision_codec

GREY = (GreyTokenizer(), {})  # local: each code depends on its own cell only


def _pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


@pytest.mark.parametrize("size, tile, overlap", [(5, 8, 2), (8, 8, 2), (9, 8, 0), (50, 8, 3)])
def test_tiles_cover_everything_and_share_enough(size, tile, overlap):
    parts = tiling.spans(size, tile, overlap)
    assert parts[0][0] == 0 and parts[-1][1] == size
    assert len({stop - start for start, stop in parts}) == 1
    for before, after in zip(parts, parts[1:], strict=False):
        assert after[0] > before[0] and before[1] - after[0] >= overlap
    inside = tiling.cuts(parts)
    assert [p for start, stop in inside for p in range(start, stop)] == list(range(size))
    for part, cut in zip(parts, inside, strict=True):
        assert part[0] <= cut[0] < cut[1] <= part[1]


@pytest.mark.parametrize("shape", [(36, 52), (8, 36, 24)])
def test_tiles_of_a_local_tokenizer_are_the_whole(shape):
    pixels = _pixels(*shape)
    whole = vision_codec.encode(GREY, [pixels], 1)[0]
    np.testing.assert_array_equal(tiling.encode(GREY, pixels, 4, 1), whole)
    rebuilt = vision_codec.decode(GREY, [whole], 1)[0].astype(int)
    # Weighted means of equal values, rounded to a byte again.
    assert np.abs(tiling.decode(GREY, whole, 4, 1).astype(int) - rebuilt).max() <= 1


def test_tiles_fade_into_each_other():
    class Tinted(GreyTokenizer):
        """Draws each tile in its own shade: that of its first code."""

        def decode(self, codes, sizes=None):
            return super().decode(codes * 0 + codes[:, :1, :1])

    codes = np.array([[0, 0, 0, 9, 9, 9, 9, 9]] * 2)
    row = tiling.decode((Tinted(), {}), codes, 5, 2)[0, :, 0].astype(int)
    assert row[0] < row[-1] and (np.diff(row) >= 0).all()
    assert np.diff(row).max() < (row[-1] - row[0]) / 4  # without fading: all of it at once


def test_an_overlap_that_leaves_nothing():
    with pytest.raises(ValueError, match=r"the overlap must be from 0 to less than a tile \(4\)"):
        tiling.spans(10, 4, 4)


def test_clips_apart_know_nothing_of_each_other():
    from emu3_jax.train.weights import load_vision_tokenizer

    tokenizer = load_vision_tokenizer("assets/vision_tokenizer_nano")
    frames = tokenizer[0].config.temporal_downsample_factor  # of one code in time
    clip, still = _pixels(2 * frames, 16, 16), _pixels(16, 24, seed=1)
    apart = vision_codec.encode(tokenizer, [clip, still], 2, clips="independent")
    alone = vision_codec.encode(tokenizer, [clip[:frames], clip[frames:], still], 2)
    np.testing.assert_array_equal(apart[0], np.concatenate(alone[:2]))
    np.testing.assert_array_equal(apart[1], alone[2])
    causal = vision_codec.encode(tokenizer, [clip], 1)[0]
    np.testing.assert_array_equal(causal[0], apart[0][0])
    assert (causal[1] != apart[0][1]).any()
    # Both one at a time: another batch size sums in another order and rounds to other bytes.
    rebuilt = vision_codec.decode(tokenizer, [apart[0]], 1, clips="independent")[0]
    second = vision_codec.decode(tokenizer, [apart[0][1:]], 1)[0]
    np.testing.assert_array_equal(rebuilt[frames:], second)
    with pytest.raises(ValueError, match="clips must be one of causal, independent, found 'all'"):
        vision_codec.encode(tokenizer, [clip], 1, clips="all")


def _command(*arguments):
    words = [sys.executable, "-m", "emu3_jax.tokenize.reconstruct", *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_the_command_puts_both_side_by_side(tmp_path):
    media.write_png(tmp_path / "still.png", np.full((40, 30, 3), 200, np.uint8))
    media.write_webp(tmp_path / "clip.webp", _pixels(8, 64, 64), fps=4)
    out = tmp_path / "out"
    common = ("--vision_tokenizer=assets/vision_tokenizer_nano", f"--output={out}")
    files = [f"--input={tmp_path / name}" for name in ("still.png", "clip.webp")]
    result = _command(*common, *files, "--clips=independent")
    assert result.returncode == 0, result.stderr
    still, clip = result.stdout.splitlines()
    assert "80x56 pixels, 10x7 codes, PSNR" in still and "8x64x64 pixels, 4x8x8 codes, PSNR" in clip
    assert media.read_image(out / "still.png").shape == (80, 112, 3)
    frames, fps, _ = media.read_video(out / "clip.mp4")
    assert frames.shape == (8, 64, 128, 3) and fps == 4
    assert np.load(out / "clip.npy").shape == (4, 8, 8)
    (tmp_path / "bad.png").write_bytes(b"no image")
    result = _command(*common, f"--input={tmp_path / 'bad.png'}")
    assert (
        result.returncode == 2 and "bad.png" in result.stderr and "Traceback" not in result.stderr
    )
