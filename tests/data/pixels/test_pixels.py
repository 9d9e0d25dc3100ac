"""Batches of raw images and clips: a function of (config, step), cropped, panned, shared out."""

import dataclasses
import json

import numpy as np
import pytest

from emu3_jax.config import to_dataclass
from emu3_jax.data import media
from emu3_jax.data.pixels import crops
from emu3_jax.data.pixels.pixel_batches import PixelConfig, PixelGroup, pixel_batches

STILL = dict(name="a", kind="stills", size=8, count=1)
STILLS, CLIPS = PixelGroup("stills", "stills", 16, 4), PixelGroup("clips", "clips", 16, 4, 4)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(8):
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        pixels[0, 0] = i  # identifies the item; a flip moves it to the other end
        media.write_png(folder / f"{i}.png", pixels)
        rows.append({"id": f"s{i}", "image": f"{i}.png", "text": ""})
    for i in range(4):
        frames = rng.integers(0, 256, (7, 16, 16, 3), np.uint8)
        frames[:, 0, 0] = np.arange(7)[:, None] + 100
        media.write_webp(folder / f"{i}.webp", frames, fps=4)
        rows.append({"id": f"c{i}", "video": f"{i}.webp", "text": ""})
    _write_rows(folder, rows)
    return str(folder)


@pytest.fixture(scope="module")
def ramps(tmp_path_factory):
    """One image whose red is twice the column and whose green is twice the row."""
    folder = tmp_path_factory.mktemp("ramps")
    media.write_png(folder / "a.png", _ramps(80, 120))
    _write_rows(folder, [{"id": 1, "image": "a.png"}])
    return str(folder)


def _ramps(height, width):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = 2 * np.arange(width), 2 * np.arange(height)[:, None]
    return pixels


def _write_rows(folder, rows):
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(root, *groups, **changes):
    return PixelConfig(root, groups=groups or (STILLS, CLIPS), **changes)


def levels(array):
    """The uint8 behind a batch."""
    return media.to_uint8(array + 1e-4)


def test_every_batch_holds_every_group(root):
    large = PixelGroup("stills_32", "stills", 32, 2)
    pans, none = PixelGroup("pans", "pans", 8, 3, 5), PixelGroup("none", "clips", 8, 0, 99)
    cfg = config(root, STILLS, CLIPS, large, pans, none)
    batch = next(pixel_batches(cfg))
    assert (
        {name: array.shape for name, array in batch.items()}
        == {
            "stills": (4, 16, 16, 3),
            "clips": (4, 4, 16, 16, 3),
            "stills_32": (2, 32, 32, 3),
            "pans": (3, 5, 8, 8, 3),
        }
        == {group.name: group.shape for group in cfg.active}
    )
    for array in batch.values():
        assert array.dtype == np.float32 and -1 <= array.min() < -0.7 and 0.7 < array.max() <= 1


def test_batch_n_is_a_function_of_config_and_n(root):
    cfg = config(root, STILLS, CLIPS, crop="random", min_crop=0.5, strides=(1, 2), reverse=True)
    iterator = pixel_batches(cfg)
    batches = [next(iterator) for _ in range(7)]
    state = iterator.get_state()
    batches += [next(iterator) for _ in range(2)]
    resumed = pixel_batches(dataclasses.replace(cfg, cache_bytes=0))
    resumed.set_state(json.loads(json.dumps(state)))
    for other in (next(resumed), next(pixel_batches(cfg, start=7))):
        for name, array in batches[7].items():
            np.testing.assert_array_equal(other[name], array)
    other = next(pixel_batches(dataclasses.replace(cfg, seed=1)))
    assert not np.array_equal(other["stills"], batches[0]["stills"])


def test_a_group_shows_the_same_whichever_stand_beside_it(root):
    twin = PixelGroup("more_stills", "stills", 16, 4)
    alone, beside = (pixel_batches(config(root, *g)) for g in ((CLIPS,), (twin, STILLS, CLIPS)))
    batch = next(beside)
    np.testing.assert_array_equal(next(alone)["clips"], batch["clips"])
    assert not np.array_equal(batch["stills"], batch["more_stills"])


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_together_read_the_batch_of_one(root, processes):
    cfg = config(root, STILLS, PixelGroup("pans", "pans", 8, 8, 3), crop="random", min_crop=0.5)
    iterators = [
        pixel_batches(
            cfg,
            start=1,
            rows=lambda n, p=p: range(n * p // processes, n * (p + 1) // processes),
        )
        for p in range(processes)
    ]
    whole = pixel_batches(cfg, start=1)
    assert iterators[-1].share["pans"] == (8 - 8 // processes, 8)
    for _ in range(3):
        parts, expected = [next(iterator) for iterator in iterators], next(whole)
        for name, array in expected.items():
            assert len(parts[0][name]) == len(array) // processes
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), array)
    states = [iterator.get_state() for iterator in iterators]
    assert whole.merge_states(states) == whole.get_state()
    with pytest.raises(ValueError, match=r"range\(2, 5\) are no rows of the group 'stills'"):
        pixel_batches(cfg, rows=lambda n: range(2, n + 1))


def test_an_epoch_holds_every_item_once_and_about_half_are_flipped(root):
    iterator = pixel_batches(config(root, STILLS))
    flipped, orders = [], set()
    for _ in range(15):
        corners = []
        for still in np.concatenate([next(iterator)["stills"] for _ in range(2)]):
            values = [levels(still[0, side]) for side in (0, -1)]
            marks = [int(v[0]) if len(set(v)) == 1 and v[0] < 8 else None for v in values]
            corners.append(marks[0] if marks[0] is not None else marks[1])
            flipped.append(marks[0] is None)
        assert sorted(corners) == list(range(8))
        orders.add(tuple(corners))
    assert len(orders) == 15 and 0.35 < np.mean(flipped) < 0.65
    still = PixelGroup("stills", "stills", 16, 8)
    unflipped = levels(next(pixel_batches(config(root, still, flip=False)))["stills"])
    assert sorted(unflipped[:, 0, 0, 0]) == list(range(8))


@pytest.mark.parametrize("strides", [(1,), (1, 2), (2, 9)])
def test_clips_are_evenly_spaced_windows_flipped_together(root, strides):
    iterator = pixel_batches(config(root, CLIPS, strides=strides))
    found = set()
    for clip in np.concatenate([next(iterator)["clips"] for _ in range(20)]):
        frames = levels(clip)[:, 0].astype(int)
        side = next(s for s in (0, -1) if len(set(np.diff(frames[:, s, 0]))) == 1)
        found.add((int(frames[1, side, 0] - frames[0, side, 0]), int(frames[0, side, 0]) - 100))
    # Four frames of seven: with every frame from 0 to 3 on, with every other from 0 on.
    expected = {1: {(1, 0), (1, 1), (1, 2), (1, 3)}, 2: {(2, 0)}, 9: set()}
    assert found == set.union(*(expected[stride] for stride in strides))


def test_a_stride_needs_its_whole_span(root):
    pairs = PixelGroup("pairs", "clips", 16, 16, 2)  # of clips of seven frames
    found = levels(next(pixel_batches(config(root, pairs, flip=False, strides=(6, 7))))["pairs"])
    assert np.all(found[:, 1, 0, 0].astype(int) - found[:, 0, 0, 0] == 6)


def test_about_half_of_the_clips_run_backwards_if_asked(root):
    iterator = pixel_batches(config(root, CLIPS, flip=False, reverse=True))
    clips = np.concatenate([next(iterator)["clips"] for _ in range(20)])
    steps = np.diff(levels(clips)[:, :2, 0, 0, 0].astype(int), axis=1)
    assert set(steps.ravel()) == {-1, 1} and 0.3 < np.mean(steps == -1) < 0.7


def test_centred_squares_are_those_of_tokenizing(ramps):
    cfg = config(ramps, PixelGroup("stills", "stills", 24, 1), flip=False)
    expected = media.resize(media.center_square(_ramps(80, 120)), 24, 24)
    np.testing.assert_array_equal(next(pixel_batches(cfg))["stills"][0], media.to_model(expected))


def _box_of(cut):
    """(left, top, side) in pixels of a cut out of `_ramps`, of inner samples (borders differ)."""
    x, y = levels(cut).astype(float)[..., 0] / 2, levels(cut).astype(float)[..., 1] / 2
    size = cut.shape[0]
    step = (x[0, -3] - x[0, 2]) / (size - 5)
    return x[0, 2] + 0.5 - 2.5 * step, y[2, 0] + 0.5 - 2.5 * step, step * size


def test_random_crops_lie_anywhere_and_have_all_sizes(ramps):
    cfg = config(ramps, PixelGroup("stills", "stills", 16, 64), crop="random", min_crop=0.3)
    iterator = pixel_batches(dataclasses.replace(cfg, flip=False))
    boxes = np.array([_box_of(cut) for _ in range(4) for cut in next(iterator)["stills"]])
    left, top, side = boxes.T
    # Levels are whole numbers, two per pixel of the image, which was scaled down by 54 / 80 before.
    assert np.all(side > 0.3 * 80 - 1.5) and np.all(side < 80 + 1.5)
    assert side.min() < 30 and side.max() > 74
    assert left.min() > -1.5 and (left + side).max() < 121.5 and (left + side).max() > 110
    assert top.min() > -1.5 and (top + side).max() < 81.5 and left.min() < 8 and top.min() < 4


def test_cuts_are_exact_to_parts_of_a_pixel():
    # At scale 1 the cubic filter keeps ramps, so only rounding to a level remains (two per pixel).
    cut = crops.cut(_ramps(40, 60), (10.3, 7.75, 26.3, 23.75), 16).astype(float)
    np.testing.assert_allclose(cut[0, :, 0], 2 * (10.3 + np.arange(16)), atol=0.51)
    np.testing.assert_allclose(cut[:, 0, 1], 2 * (7.75 + np.arange(16)), atol=0.51)
    boxes = np.array([[0, 0, 16, 16], [0.5, 0, 16.5, 16]])
    pan = crops.cut(_ramps(40, 60), boxes, 16)
    assert pan.shape == (2, 16, 16, 3) and np.all(pan[1, :, 2:-2, 0] - pan[0, :, 2:-2, 0] == 1)


@pytest.mark.parametrize("size", [(40, 40), (30, 200), (200, 30)])
def test_windows_of_pans_move_evenly_within_the_image(size):
    height, width = size
    moves, zooms = [], []
    for seed in range(200):
        boxes = crops.pan_boxes(height, width, 12, np.random.default_rng(seed))
        left, top, right, bottom = boxes.T
        assert boxes.min() >= 0 and right.max() <= width and bottom.max() <= height
        np.testing.assert_allclose(right - left, bottom - top, atol=1e-9)
        np.testing.assert_allclose(np.diff(boxes, n=2, axis=0), 0, atol=1e-9)
        side = right - left
        assert 0.4 * min(size) - 1e-9 <= side.min() and side.max() <= min(size) + 1e-9
        zooms.append(np.log(side[-1] / side[0]) / 11)
        moves.append((left[1] - left[0]) / side[0])
    limits = crops.PAN_SPEED, crops.PAN_ZOOM
    for found, limit in zip((moves, zooms), limits, strict=True):
        assert np.abs(found).max() <= limit + 1e-9 and min(found) < 0 < max(found)
        assert np.abs(found).max() > 0.4 * limit


def test_pans_show_the_windows_of_their_place(ramps):
    group = PixelGroup("pans", "pans", 16, 8, 6)
    pans = next(pixel_batches(config(ramps, group, flip=False)))["pans"]
    for pan in pans:
        left = np.array([_box_of(frame)[0] for frame in pan])
        # A straight line up to rounding: half a level at either end of the fit is 0.6 pixels.
        line = np.polyval(np.polyfit(np.arange(6), left, 1), np.arange(6))
        np.testing.assert_allclose(left, line, atol=1.2)
    assert np.abs(pans[:, -1] - pans[:, 0]).max(axis=(1, 2, 3)).min() > 2 / 255


def test_originals_are_kept_up_to_a_sum_and_at_a_size_that_suffices(ramps, monkeypatch):
    reads = []
    read = media.read_image
    monkeypatch.setattr(media, "read_image", lambda path, name: reads.append(path) or read(path))
    group = PixelGroup("stills", "stills", 10, 4)
    # Crops of half the short side at 10 pixels need 20 x 30 pixels of it: 1,800 bytes.
    for cache_bytes, expected in ((1800, 1), (1799, 4)):
        reads.clear()
        cfg = config(ramps, group, crop="random", min_crop=0.5, cache_bytes=cache_bytes)
        iterator = pixel_batches(cfg)
        next(iterator)
        assert (len(reads) == 1) == (expected == 1) and len(reads) >= expected


def test_the_sum_is_over_all_items(root, monkeypatch):
    reads = []
    read = media.read_image
    monkeypatch.setattr(media, "read_image", lambda path, name: reads.append(path) or read(path))
    iterator = pixel_batches(config(root, STILLS, cache_bytes=4 * 16 * 16 * 3))
    for _ in range(6):  # three epochs of eight images, four of which are kept
        next(iterator)
    assert len(reads) >= 8 + 4 + 4


def test_bad_items_are_replaced_up_to_a_limit(root, tmp_path):
    media.write_png(tmp_path / "a.png", np.full((16, 16, 3), 7, np.uint8))
    (tmp_path / "bad.png").write_bytes(b"no image")
    rows = ['{"id": 1, "image": "a.png"}', '{"id": 2, "image": "bad.png"}']
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    cfg = config(str(tmp_path), STILLS)
    with pytest.raises(media.MediaError, match="bad.png: not an image.*max_bad_items=0"):
        next(pixel_batches(cfg))
    stills = next(pixel_batches(dataclasses.replace(cfg, max_bad_items=1)))["stills"]
    assert np.all(levels(stills) == 7)
    long = PixelGroup("long", "clips", 16, 1, 4)
    with pytest.raises(media.MediaError, match="webp: 7 frames are fewer than the 10 that a train"):
        next(pixel_batches(config(root, long, strides=(3, 4))))
    with pytest.raises(media.MediaError, match="no video can be used"):
        next(pixel_batches(config(root, long, strides=(3, 4), max_bad_items=4)))
    with pytest.raises(ValueError, match="hold no video, which the group 'clips' is made of"):
        pixel_batches(config(str(tmp_path), max_bad_items=1))
    (tmp_path / "train.jsonl").write_text(rows[0] + "\nno row")
    with pytest.raises(media.MediaError, match="train.jsonl:2: not a JSON row"):
        pixel_batches(cfg)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(groups=[STILL] * 2), "names must differ, 'a' appears twice"),
        (dict(groups=[]), "at least one must have a count above 0"),
        (dict(groups=[STILL | dict(count=0)]), "at least one must have a count above 0"),
        (dict(groups=[STILL | dict(count=-1)]), "group 'a': size must be above 0 and count not"),
        (dict(groups=[STILL | dict(size=0)]), "group 'a': size must be above 0 and count not"),
        (dict(groups=[STILL | dict(kind="film")]), "kind must be one of stills, .* found 'film'"),
        (dict(groups=[STILL | dict(name="a b")]), "group 'a b': a group's name must be letters"),
        (dict(groups=[STILL | dict(frames=4)]), "group 'a': stills have 1 frame, found frames=4"),
        (dict(groups=[STILL | dict(kind="pans")]), "group 'a': pans need frames >= 2, found 1"),
        (dict(groups=[STILL | dict(kind="clips")]), "group 'a': clips need frames >= 2, found 1"),
        (dict(crop="center"), "crop must be one of .*found 'center'"),
        (dict(min_crop=0.5), "min_crop=0.5 goes with crop='random' only"),
        (dict(crop="random", min_crop=0.0), r"min_crop must lie in \(0, 1\], found 0.0"),
        (dict(strides=[]), r"strides must be numbers of at least 1, found \(\)"),
        (dict(strides=[0, 1]), "strides must be numbers of at least 1"),
        (dict(seed=-1), "seed must not be negative, found -1"),
    ],
)
def test_bad_configs_end_in_one_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        to_dataclass(PixelConfig, {"root": ".", "groups": [STILL]} | changes, "data")
