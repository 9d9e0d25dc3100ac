"""Batches of pixels from tars and TFDS: those of the same images in a folder; none are held."""

import gzip
import io
import json
import lzma
import tarfile

import numpy as np
import pytest
from PIL import Image

from emu3_jax.data import media
from emu3_jax.data.pixels import decoded
from emu3_jax.data.pixels.pixel_batches import PixelConfig, PixelGroup, pixel_batches
from emu3_jax.data.sources import open_source
from emu3_jax.data.sources.tfds import TfdsSource

GROUPS = (PixelGroup("stills", "stills", 16, 4), PixelGroup("pans", "pans", 8, 2, 3))
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 24, 32, 3), np.uint8)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """The same images as folder and tars, among the tars' members a clip with a thumbnail."""
    folder = tmp_path_factory.mktemp("corpora")
    rows, members = [], []
    for i, pixels in enumerate(IMAGES):
        (folder / f"{i}.png").write_bytes(png(pixels))
        rows.append({"id": str(i), "image": f"{i}.png"})
        members += [(f"{i}.png", png(pixels)), (f"{i}.txt", b"a caption")]
    media.write_webp(folder / "clip.webp", IMAGES[:5], fps=4)
    rows.append({"id": "c", "video": "clip.webp"})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    film = folder / "clip.mp4"
    media.write_mp4(film, IMAGES[:5], 4)
    write_tar(folder / "0.tar", members[:7])
    write_tar(folder / "1.tar", members[7:])
    write_tar(folder / "2.tar", [("c.mp4", film.read_bytes()), ("c.jpg", b"a thumbnail")])
    return folder


def first_batch(root, *files, groups=GROUPS, **settings):
    return next(pixel_batches(PixelConfig(str(root), files, groups, flip=False, **settings)))


def test_tars_give_the_batches_of_a_folder(corpora):
    """0.tar ends between an image and its caption, which then stands alone in 1.tar."""
    expected = first_batch(corpora, "train.jsonl")
    for files in (("webdataset:[01].tar",), ("webdataset:0.tar", "webdataset:1.tar")):
        found = first_batch(corpora, *files)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)


def test_a_clip_in_a_tar(corpora):
    clips = (PixelGroup("clips", "clips", 16, 2, 5),)
    batch = first_batch(corpora, "webdataset:2.tar", groups=clips)
    pixels, _, _ = media.read_video(corpora / "clip.mp4")
    expected = media.resize(media.center_square(pixels), 16, 16)
    np.testing.assert_array_equal(media.to_uint8(batch["clips"][0] + 1e-4), expected)


def test_the_media_of_a_tar_stay_in_it(corpora, monkeypatch):
    held = []
    monkeypatch.setattr(decoded.media, "read_image", lambda found, name: held.append(name))
    items = decoded.DecodedItems(str(corpora), ("webdataset:*.tar",), 64)
    assert items.count("image") == 6 and items.count("video") == 1 and not held
    listed = [
        item
        for shard in range(3)
        for item in open_source("webdataset:*.tar", corpora).listed(shard)
    ]
    assert all(callable((item.image or item.video).read) for item in listed if item.kind != "text")
    assert listed[0].image.read() == png(IMAGES[0])


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_a_compressed_tar_is_refused(corpora, tmp_path, pack):
    (tmp_path / "0.tar").write_bytes(pack((corpora / "0.tar").read_bytes()))
    with pytest.raises(ValueError, match="0.tar: is compressed.*expected a plain tar"):
        first_batch(tmp_path, "webdataset:0.tar")


def test_a_damaged_tar_counts_as_one_item(corpora, tmp_path):
    (tmp_path / "0.tar").write_bytes((corpora / "0.tar").read_bytes()[:3000])
    (tmp_path / "1.tar").write_bytes((corpora / "1.tar").read_bytes())
    assert first_batch(tmp_path, "webdataset:*.tar", max_bad_items=1)["stills"].shape[0] == 4
    with pytest.raises(media.MediaError, match="0.tar: cannot be read as a tar.*max_bad_items=0"):
        first_batch(tmp_path, "webdataset:*.tar")


def test_a_broken_image_in_a_tar_is_named(tmp_path):
    write_tar(tmp_path / "0.tar", [("a.png", png(IMAGES[0])), ("b.png", b"no image")])
    batch = first_batch(tmp_path, "webdataset:0.tar", max_bad_items=1)
    assert batch["stills"].shape == (4, 16, 16, 3)
    with pytest.raises(media.MediaError, match="0.tar:b: not an image"):
        first_batch(tmp_path, "webdataset:0.tar")


class Examples(list):
    """What tensorflow-datasets gives, read one at a time."""

    def __getitem__(self, index):
        found = super().__getitem__(index)
        if isinstance(found, Exception):
            raise found
        return found


def tfds_source(examples, monkeypatch):
    source = TfdsSource.__new__(TfdsSource)
    source.name, source._text_path, source._label, source._per_shard = "fake", (), None, 4
    source._data, source._shown = Examples(examples), ["image"]
    monkeypatch.setattr(decoded, "open_source", lambda name, root: source)


def test_tfds_gives_the_batches_of_a_folder(corpora, monkeypatch):
    expected = first_batch(corpora, "train.jsonl")
    tfds_source([{"image": pixels} for pixels in IMAGES], monkeypatch)
    for name, array in first_batch("unused", "tfds:fake:train").items():
        np.testing.assert_array_equal(expected[name], array)


def test_a_broken_example_of_tfds_is_named(monkeypatch):
    tfds_source([{"image": IMAGES[0]}, RuntimeError("bad jpeg")], monkeypatch)
    with pytest.raises(media.MediaError, match="tfds:fake:1: bad jpeg"):
        first_batch("unused", "tfds:fake:train")


def test_a_prepared_dataset(tmp_path, monkeypatch, corpora):
    tfds = pytest.importorskip("tensorflow_datasets")

    class Photographs(tfds.core.GeneratorBasedBuilder):
        name = "photographs_of_pixels"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {"image": tfds.features.Tensor(shape=(24, 32, 3), dtype=np.uint8)}
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate({"image": pixels} for pixels in IMAGES[:1])

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    Photographs(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    found = first_batch("unused", "tfds:photographs_of_pixels:train", groups=GROUPS[:1])
    square = media.resize(media.center_square(IMAGES[0]), 16, 16)
    np.testing.assert_array_equal(media.to_uint8(found["stills"][0] + 1e-4), square)
