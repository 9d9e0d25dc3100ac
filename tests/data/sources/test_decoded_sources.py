"""Media that a corpus supplies as pixels: their depth, and the rate of their clips."""

import re

import numpy as np
import pytest
from PIL import Image

from emu3_jax.data import media
from emu3_jax.data.media import PixelLimits
from emu3_jax.data.sources import RawItem, open_source
from emu3_jax.data.sources.tfds import TfdsSource
from emu3_jax.tokenize.prepare import MediaRules, prepare

DEEP = np.array([[0, 1, 128, 255], [256, 257, 30_000, 65_535]], np.uint16)


def item_of(example):
    """The source's item for one example, without a prepared dataset."""
    source = TfdsSource.__new__(TfdsSource)
    source.name, source._text_path, source._label, source._per_shard = "fake", ("caption",), None, 1
    source._data = [{"caption": b"a cat"} | example]
    return next(source.items(0))


def test_16_bits_are_scaled_as_by_the_media_reader(tmp_path):
    Image.fromarray(DEEP).save(tmp_path / "deep.png")
    expected = media.read_image(tmp_path / "deep.png")
    np.testing.assert_array_equal(item_of({"image": DEEP[..., None]}).image, expected)
    colour = np.stack([DEEP, DEEP // 2, DEEP // 3], -1)
    scaled = np.round(colour * (255 / 65535)).astype(np.uint8)
    np.testing.assert_array_equal(item_of({"image": colour}).image, scaled)


@pytest.mark.parametrize(
    "example, reason",
    [
        ({"image": np.zeros((4, 4, 3), np.float32)}, "float32 .4, 4, 3."),
        ({"image": np.zeros((4, 4, 4), np.uint8)}, "1 or 3 channels, found uint8 .4, 4, 4."),
        ({"caption": b"\xff"}, "can't decode byte"),
        ({"caption": 5}, "a caption must be a string, found 5"),
    ],
)
def test_an_example_that_cannot_be_used_is_an_item_with_a_problem(example, reason):
    assert re.search(reason, item_of(example).problem)


@pytest.mark.parametrize("error", [OSError, RuntimeError, type("Panic", (BaseException,), {})])
def test_an_example_that_cannot_be_decoded_is_an_item_with_a_problem(error):
    """Readers of TensorFlow raise errors of their own."""

    class Broken(list):
        def __getitem__(self, index):
            raise error("cannot identify image file")

    source = TfdsSource.__new__(TfdsSource)
    source.name, source._per_shard, source._data = "fake", 1, Broken([0])
    assert [item.problem for item in source.items(0)] == ["cannot identify image file"]


@pytest.mark.parametrize("stated", [{}, {"fps": 0}, {"fps": np.float32("nan")}, {"fps": b"ten"}])
def test_a_rate_that_is_not_stated(stated):
    assert item_of({"video": np.zeros((4, 4, 4, 3), np.uint8)} | stated).fps == 0.0


def test_a_stated_rate():
    item = item_of({"video": np.zeros((4, 4, 4, 3), np.uint8), "frame_rate": np.float32(12.5)})
    assert item.fps == 12.5


@pytest.mark.parametrize("filmed_at", [5, 10, 12.5, 25])
@pytest.mark.parametrize("fps", [None, 4, 10, 12, 50])
@pytest.mark.parametrize("max_frames", [None, 6])
def test_pixels_are_sampled_like_a_file(filmed_at, fps, max_frames, tmp_path):
    frames = np.arange(20, dtype=np.uint8).repeat(64 * 3).reshape(20, 8, 8, 3)
    media.write_webp(tmp_path / "clip.webp", frames, filmed_at)
    rules = MediaRules(PixelLimits(64, 64), 1, fps, max_frames)
    (file,) = prepare(RawItem("f", video=str(tmp_path / "clip.webp")), rules).media
    (pixels,) = prepare(RawItem("p", video=frames, fps=filmed_at), rules).media
    np.testing.assert_array_equal(pixels.pixels, file.pixels)
    assert pixels.fps == pytest.approx(file.fps)
    assert pixels.seconds == pytest.approx(file.seconds)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_prepared_dataset_of_16_bits_and_of_a_clip(kind, tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    frames = np.arange(3, dtype=np.uint8).repeat(8 * 8 * 3).reshape(3, 8, 8, 3)
    pixels = {"image": DEEP[..., None], "video": frames}[kind]

    class Decoded(tfds.core.GeneratorBasedBuilder):
        name = f"decoded_{kind}"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                kind: tfds.features.Tensor(shape=pixels.shape, dtype=pixels.dtype),
                "caption": tfds.features.Text(),
                "fps": np.float32,
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield 0, {kind: pixels, "caption": "deep", "fps": 12.5}

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    Decoded(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    (item,) = open_source(f"tfds:decoded_{kind}:train").items(0)
    expected = item_of({kind: pixels})
    assert item.kind == expected.kind == kind
    np.testing.assert_array_equal(getattr(item, kind), getattr(expected, kind))
    assert item.fps == 12.5 and item.text == "deep"


def test_the_image_beside_a_clip_is_its_thumbnail():
    shown = {"image": np.zeros((4, 4, 3), np.uint8), "video": np.zeros((2, 4, 4, 3), np.uint8)}
    item = item_of(shown)
    assert item.kind == "video" and item.image is None
