"""Batches of raw pictures and clips: a function of (config, step), flipped, resized, cached."""

import dataclasses
import json

import numpy as np
import pytest

from emu3_jax.data import media
from emu3_jax.data.pixels import PixelConfig, evaluation_pixels, pixel_batches


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(10):
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        pixels[0, 0] = i  # tells the items apart; a flip moves it to the other end
        media.write_png(folder / f"{i}.png", pixels)
        rows.append({"id": f"s{i}", "image": f"{i}.png", "text": ""})
    for i in range(4):
        frames = rng.integers(0, 256, (6, 16, 16, 3), np.uint8)
        frames[:, 0, 0] = np.arange(6)[:, None] + 100
        media.write_webp(folder / f"{i}.webp", frames, fps=4)
        rows.append({"id": f"c{i}", "video": f"{i}.webp", "text": ""})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def config(root, **changes):
    fields = {"image_size": 16, "frames": 4, "stills_per_batch": 5, "clips_per_batch": 2}
    return PixelConfig(root, **(fields | changes))


def test_shapes_and_range(root):
    batch = next(pixel_batches(config(root)))
    assert batch["stills"].shape == (5, 16, 16, 3) and batch["clips"].shape == (2, 4, 16, 16, 3)
    for array in batch.values():
        assert array.dtype == np.float32 and -1 <= array.min() < -0.9 and 0.9 < array.max() <= 1
    assert set(next(pixel_batches(config(root, clips_per_batch=0)))) == {"stills"}


def test_batch_n_is_a_function_of_config_and_n(root):
    iterator = pixel_batches(config(root))
    batches = [next(iterator) for _ in range(7)]
    state = iterator.get_state()
    batches += [next(iterator) for _ in range(2)]
    resumed = pixel_batches(config(root, cache_bytes=0))
    resumed.set_state(json.loads(json.dumps(state)))
    for other in (next(resumed), next(pixel_batches(config(root), start=7))):
        for name, array in batches[7].items():
            np.testing.assert_array_equal(other[name], array)
    other = next(pixel_batches(config(root, seed=1)))
    assert not np.array_equal(other["stills"], batches[0]["stills"])


def test_an_epoch_holds_every_item_once_and_about_half_are_flipped(root):
    iterator = pixel_batches(config(root))
    flipped = []
    for _ in range(12):
        corners = []
        for still in np.concatenate([next(iterator)["stills"] for _ in range(2)]):
            values = [media.to_uint8(still[0, side] + 1e-4) for side in (0, -1)]
            marks = [int(v[0]) if len(set(v)) == 1 and v[0] < 10 else None for v in values]
            corners.append(marks[0] if marks[0] is not None else marks[1])
            flipped.append(marks[0] is None)
        assert sorted(corners) == list(range(10))
    assert 0.35 < np.mean(flipped) < 0.65
    assert not any(
        not np.array_equal(a, b)
        for a, b in zip(_unflipped(root)["stills"], _unflipped(root)["stills"], strict=True)
    )


def _unflipped(root):
    return next(pixel_batches(config(root, flip=False)))


def test_clips_are_windows_of_consecutive_frames_flipped_together(root):
    iterator = pixel_batches(config(root))
    starts, sides = set(), set()
    for _ in range(12):
        for clip in next(iterator)["clips"]:
            frames = media.to_uint8(clip + 1e-4)
            side = next(s for s in (0, -1) if np.all(np.diff(frames[:, 0, s, 0].astype(int)) == 1))
            starts.add(int(frames[0, 0, side, 0]) - 100)
            sides.add(side)
    assert starts == {0, 1, 2} and sides == {0, -1}


def test_about_half_of_the_clips_run_backwards_if_asked(root):
    iterator = pixel_batches(config(root, flip=False, reverse=True, stills_per_batch=0))
    steps = []
    for _ in range(30):
        frames = media.to_uint8(next(iterator)["clips"] + 1e-4)
        steps += list(np.diff(frames[:, :, 0, 0, 0].astype(int), axis=1)[:, 0])
    assert set(steps) == {-1, 1}
    assert 0.3 < np.mean(np.equal(steps, -1)) < 0.7


def test_pictures_of_any_size_become_squares(tmp_path):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 10:30] = 255
    media.write_png(tmp_path / "a.png", pixels)
    (tmp_path / "train.jsonl").write_text('{"id": 1, "image": "a.png"}\n')
    cfg = config(str(tmp_path), clips_per_batch=0)
    assert next(pixel_batches(cfg))["stills"].min() == 1  # the white square in the middle


def test_evaluation_pixels_stand_in_file_order(root):
    arrays = evaluation_pixels(config(root))
    assert arrays["stills"].shape == (10, 16, 16, 3) and arrays["clips"].shape == (4, 4, 16, 16, 3)
    expected = media.to_model(media.read_image(f"{root}/3.png"))
    np.testing.assert_array_equal(arrays["stills"][3], expected)


def test_bad_items_are_replaced_up_to_a_limit(root, tmp_path):
    media.write_png(tmp_path / "a.png", np.full((16, 16, 3), 7, np.uint8))
    (tmp_path / "bad.png").write_bytes(b"no picture")
    rows = ['{"id": 1, "image": "a.png"}', '{"id": 2, "image": "bad.png"}']
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    cfg = config(str(tmp_path), clips_per_batch=0)
    with pytest.raises(media.MediaError, match="bad.png: not a picture.*max_bad_items=0"):
        next(pixel_batches(cfg))
    stills = next(pixel_batches(dataclasses.replace(cfg, max_bad_items=1)))["stills"]
    assert np.all(media.to_uint8(stills + 1e-4) == 7)
    with pytest.raises(media.MediaError, match="6 frames are fewer than the 8"):
        next(pixel_batches(config(root, frames=8)))
    with pytest.raises(ValueError, match="hold none of the media"):
        next(pixel_batches(config(str(tmp_path))))
