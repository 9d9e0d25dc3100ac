"""Bytes that make a decoder fail, choose a reader of their own, or ask for too much memory."""

import io
import json
import os
import struct

import numpy as np
import pytest
from broken_media import animated_gif, cut_gif
from PIL import Image

from emu3_jax.data import media
from emu3_jax.data.media import MediaError
from emu3_jax.data.pixels.decoded import DecodedItems
from emu3_jax.data.sources import FolderSource

# Pillow warns of what it finds in a broken EXIF block.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height=20, width=30, seed=0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def test_a_gif_cut_anywhere_is_a_media_error_or_a_clip():
    whole, read = animated_gif(), 0
    for size in [*range(1, len(whole), 97), *range(len(cut_gif()) - 20, len(cut_gif()) + 20)]:
        try:
            read += len(media.read_video(whole[:size])[0]) > 0
        except MediaError:
            pass
    assert read < 10


def test_a_cut_gif_is_replaced_by_another_clip(tmp_path):
    with pytest.raises(MediaError):
        media.read_video(cut_gif())
    (tmp_path / "cut.gif").write_bytes(cut_gif())
    (tmp_path / "whole.gif").write_bytes(animated_gif())
    rows = [json.dumps({"id": name, "video": f"{name}.gif"}) for name in ("cut", "whole")]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    items = DecodedItems(str(tmp_path), ("train.jsonl",), 64, max_bad_items=1)
    assert items.get("video", 0).shape == (4, 64, 64, 3)
    with pytest.raises(MediaError, match="cut.gif: .*max_bad_items=0"):
        DecodedItems(str(tmp_path), ("train.jsonl",), 64).get("video", 0)


class Panic(BaseException):
    """Like those of extensions written in Rust."""


@pytest.mark.parametrize("error", [Panic("p"), TypeError("t"), RecursionError(), SyntaxError("s")])
def test_whatever_a_decoder_raises_is_a_media_error(error, monkeypatch):
    content = encoded(noise(), "PNG")

    def fails(*_):
        raise error

    for method in ("load", "convert", "transpose"):
        exif = Image.Exif()
        exif[0x0112] = 6
        content = encoded(noise().convert("L"), "PNG", exif=exif)
        with monkeypatch.context() as patch:
            patch.setattr(f"PIL.Image.Image.{method}", fails)
            patch.setattr("PIL.ImageFile.ImageFile.load", fails)
            with pytest.raises(MediaError, match="a.png: the image cannot be decoded"):
                media.read_image(content, name="a.png")
    monkeypatch.setattr("PIL.Image.open", fails)
    with pytest.raises(MediaError, match="a.png: the image cannot be opened"):
        media.read_image(content, name="a.png")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_is_not_the_items_fault_passes(error, monkeypatch):
    def stops(*_, **__):
        raise error

    monkeypatch.setattr("PIL.Image.open", stops)
    with pytest.raises(error):
        media.read_image(encoded(noise(), "PNG"))


# ------------------------------------------------------------------------------------- formats


def test_postscript_never_reaches_an_interpreter(monkeypatch):
    """Pillow would run Ghostscript; it may not even open the file."""
    postscript = encoded(noise(), "EPS")
    monkeypatch.setattr("PIL.EpsImagePlugin.EpsImageFile.__init__", lambda *_: pytest.fail("run"))
    for content in (postscript, b"\xc5\xd0\xd3\xc6" + bytes(26) + postscript):
        with pytest.raises(MediaError, match="not an image in any of the formats"):
            media.read_image(content)


def test_only_the_listed_formats_are_opened():
    Image.init()
    refused = ("EPS", "PDF", "GRIB", "BUFR", "HDF5", "SPIDER", "IM", "XBM", "MSP", "BLP", "ICNS")
    assert not set(refused) & set(media.FORMATS) and set(media.FORMATS) <= set(Image.OPEN)
    wmf = b"\xd7\xcd\xc6\x9a" + bytes(100)  # on Windows rendered by the system
    iptc = b"\x1c\x03\x3c\x00\x02\x01\x01" + bytes(100)  # opens whatever it holds
    for content in (wmf, iptc, encoded(noise().convert("1"), "XBM"), encoded(noise(), "IM")):
        with pytest.raises(MediaError):
            media.read_image(content)
    for kind in (
        "BMP",
        "DIB",
        "ICO",
        "PCX",
        "PPM",
        "QOI",
        "SGI",
        "TGA",
        "TIFF",
        "WEBP",
        "JPEG2000",
    ):
        assert media.read_image(encoded(noise(32, 32), kind)).shape == (32, 32, 3), kind


# --------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize("name", ["../secret.png", "a/../../secret.png", "/etc/secret.png", ".."])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_row_names_no_file_outside_of_its_corpus(name, kind, tmp_path):
    (tmp_path / "corpus").mkdir()
    shown = [{kind: name}, {"segments": [{"text": "a"}, {kind: name}]}]
    shown += [{"turns": [{"question": "q", "answer": "a", kind: name}]}]
    rows = [json.dumps({"id": number, **row}) for number, row in enumerate(shown)]
    (tmp_path / "corpus" / "train.jsonl").write_text("\n".join(rows))
    items = list(FolderSource(tmp_path / "corpus" / "train.jsonl").items(0))
    assert len(items) == 3
    for item in items:
        assert "lies outside of the folder" in item.problem and repr(name) in item.problem


def test_a_row_may_name_a_file_inside_in_any_way(tmp_path, monkeypatch):
    names = ["a.png", "b/a.png", "b/../a.png", str(tmp_path / "a.png")]
    rows = [json.dumps({"id": name, "image": name}) for name in names]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    for item in FolderSource(tmp_path / "train.jsonl").items(0):
        assert not item.problem and item.image.endswith("a.png")
    monkeypatch.chdir(tmp_path)
    assert not any(item.problem for item in FolderSource("train.jsonl").items(0))


# ---------------------------------------------------------------------------------------- EXIF


def _with_exif(kind: str, block: bytes | None) -> bytes:
    """An image turned by its EXIF block, and with `block` over all but its start."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    whole = exif.tobytes()
    if block is None:
        return encoded(noise(), kind, exif=whole)
    # Pillow's writers look into the block, so that a broken one comes later.
    content = encoded(noise(), kind, exif=whole)
    start = content.index(whole[6:14])
    size = content.index(b"maker") + 5 - start
    return content[:start] + (block * size)[:size] + content[start + size :]


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "MPO"])
def test_a_broken_exif_block_does_not_cost_the_image(kind):
    assert media.read_image(_with_exif(kind, None)).shape == (30, 20, 3)
    for block in (b"\0", b"\xff", b"MM\0*\0\0\0\x08\xff\xff", b"II*\0\xff\xff\xff\xff"):
        assert media.read_image(_with_exif(kind, block)).shape in ((20, 30, 3), (30, 20, 3))


@pytest.mark.parametrize("block", [b"", b"junk", b"MM\0*\0\0\0\x08\xff\xff\x01\x12"])
def test_a_broken_exif_block_of_a_png(block):
    assert media.read_image(encoded(noise(), "PNG", exif=block)).shape == (20, 30, 3)


def test_only_the_orientation_is_read():
    """Other entries, here a directory of GPS data beyond the end, are nobody's business."""
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHII", 0x8825, 4, 1, 2**31)
    block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + bytes(4)
    for kind in ("JPEG", "PNG", "WEBP"):
        assert media.read_image(encoded(noise(), kind, exif=block)).shape == (30, 20, 3), kind


@pytest.mark.parametrize("orientation", range(10))
def test_each_orientation_is_turned_as_pillow_turns_it(orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(noise(), "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    np.testing.assert_array_equal(media.read_image(content), expected)


# -------------------------------------------------------------------------------------- limits


def test_the_limit_holds_after_resizing_too():
    with pytest.raises(MediaError, match="30x20 pixels would become 8193x8192; expected 1 to 6710"):
        media.read_image(encoded(noise(), "PNG"), fit=lambda height, width: (8192, 8193))
    with pytest.raises(MediaError, match="expected 1 to 67108864 pixels"):
        media.resize(np.zeros((20, 30, 3), np.uint8), 8192, 8193)
    with pytest.raises(MediaError, match="would become 0x3; expected 1"):
        media.resize(np.zeros((2, 20, 30, 3), np.uint8), 3, 0)


def test_a_file_is_measured_before_it_is_read(tmp_path):
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(media.MAX_FILE_BYTES + 1)
    for read in (media.read_image, media.read_video):
        with pytest.raises(MediaError, match="sparse.png: 536870913 bytes are more than the limit"):
            read(tmp_path / "sparse.png")


def test_a_name_that_is_no_file_is_a_media_error(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # reading it would wait for a writer
    for name in ("pipe.png", "", "a\0b.png", "\ud800.png"):
        with pytest.raises(MediaError, match="cannot be read"):
            media.read_image(str(tmp_path / name))
