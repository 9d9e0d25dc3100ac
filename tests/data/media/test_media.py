"""Reading and writing images and clips, and errors for bad ones."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from paths import GOLDEN
from PIL import Image

from emu3_jax.data import media
from emu3_jax.data.media import MediaError, PixelLimits


def random_image(height=20, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth_clip(frames=9, height=32, width=48):
    y, x = np.mgrid[:height, :width]
    return np.stack([np.stack([3 * y, 3 * x, 20 * t + 0 * x], -1) for t in range(frames)]).astype(
        np.uint8
    )


# ------------------------------------------------------------------------------------- sizes


def test_smart_resize_is_the_released_rule():
    cases = json.loads((GOLDEN / "processing.json").read_text())["smart_resize"]
    assert len(cases) > 10
    for height, width, *expected in cases:
        if expected[0] is None:
            with pytest.raises(MediaError):
                media.smart_resize(height, width)
        else:
            assert list(media.smart_resize(height, width)) == expected


def test_smart_resize_with_nano_limits_gives_one_size():
    limits = PixelLimits(64 * 64, 64 * 64, 8)
    for side in (16, 64, 200):
        assert media.smart_resize(side, side, limits) == (64, 64)
    with pytest.raises(MediaError, match="too small"):
        media.smart_resize(7, 20, limits)
    with pytest.raises(ValueError, match="min_pixels"):
        PixelLimits(100, 50)


def test_model_numbers_round_trip_within_the_truncation():
    values = np.arange(256, dtype=np.uint8)
    there = media.to_model(values)
    assert there.dtype == np.float32 and there.min() == -1 and there.max() == 1
    back = media.to_uint8(there).astype(int)
    assert np.all((values - back >= 0) & (values - back <= 1))
    assert media.to_uint8(np.float32([-3, 3])).tolist() == [0, 255]
    # Released: truncated, not rounded.
    assert media.to_uint8(np.float32([200.9 / 127.5 - 1]))[0] == 200


def test_model_numbers_are_those_of_the_released_order():
    values = np.arange(256, dtype=np.uint8)
    # transformers: rescale (a product in float64, then float32), then normalize in float32.
    rescaled = (values * (1 / 255)).astype(np.float32)
    mean = deviation = np.array(0.5, np.float32)
    expected = (rescaled - mean) / deviation
    assert expected.dtype == np.float32
    image = values.reshape(8, 8, 4)
    np.testing.assert_array_equal(media.to_model(image), expected.reshape(8, 8, 4))


def test_resize_is_pillows_bicubic():
    pixels = random_image(40, 60)
    expected = Image.fromarray(pixels).resize((24, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(media.resize(pixels, 16, 24), np.asarray(expected))
    assert media.resize(pixels[None], 16, 24).shape == (1, 16, 24, 3)
    assert media.center_square(random_image(4, 8)).shape == (4, 4, 3)


# ------------------------------------------------------------------------------------ images


def test_exif_orientation_turns_the_image_upright():
    pixels = random_image()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    found = media.read_image(encoded(Image.fromarray(pixels), "PNG", exif=exif))
    assert np.array_equal(found, np.rot90(pixels, k=-1))


@pytest.mark.parametrize("mode, kind", [("RGB", "JPEG"), ("RGBA", "PNG"), ("I;16", "PNG")])
def test_fitting_while_reading_is_resizing_what_was_read(mode, kind):
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 4), np.uint8)
    image = Image.fromarray(noise if mode == "RGBA" else noise[..., :3])
    if mode == "I;16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(image, kind, exif=exif)
    asked = []

    def fit(height, width):
        asked.append((height, width))
        return 24, 48

    found = media.read_image(content, fit=fit)
    assert asked == [(30, 40)]  # upright
    np.testing.assert_array_equal(found, media.resize(media.read_image(content), 24, 48))
    with pytest.raises(MediaError, match="too small: each side needs at least 64"):
        limits = PixelLimits(spatial_factor=64)
        media.read_image(content, fit=lambda h, w: media.smart_resize(h, w, limits))


def test_transparency_is_laid_over_white():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 3] = [0, 255, 128, 0]
    found = media.read_image(encoded(Image.fromarray(rgba), "PNG"))
    assert found[0, :, 0].tolist() == [255, 0, 127, 255]
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([10, 20, 30])
    content = encoded(palette, "PNG", transparency=0)
    assert media.read_image(content).tolist() == np.full((2, 2, 3), 255).tolist()


def test_sixteen_bits_are_scaled():
    grey = np.array([[0, 256, 32768, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        found = media.read_image(encoded(Image.fromarray(grey), kind))
        assert found[0, :, 1].tolist() == [0, 1, 128, 255]


def test_other_modes_become_rgb():
    pixels = Image.fromarray(random_image())
    for mode, kind in (("CMYK", "JPEG"), ("L", "PNG"), ("1", "PNG"), ("P", "GIF"), ("LA", "PNG")):
        found = media.read_image(encoded(pixels.convert(mode), kind))
        assert found.shape == (20, 30, 3) and found.dtype == np.uint8
    red = Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK")
    assert media.read_image(encoded(red, "JPEG"))[8, 8].tolist() == [255, 0, 0]


def test_of_an_animated_file_the_first_frame_is_taken(tmp_path):
    frames = np.stack([random_image(seed=1), random_image(seed=2)])
    media.write_webp(tmp_path / "a.webp", frames, fps=4)
    assert np.array_equal(media.read_image(tmp_path / "a.webp"), frames[0])


def test_bad_images_are_one_sentence_that_names_the_file(tmp_path):
    whole = encoded(Image.fromarray(random_image(200, 200)), "PNG")
    jpeg = encoded(Image.fromarray(random_image(200, 200)), "JPEG")
    bad = {
        "empty.png": (b"", "empty"),
        "text.png": (b"this is no image", "not an image"),
        "truncated.png": (whole[: len(whole) // 2], "cannot be"),
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "cannot be decoded"),
        "header.png": (whole[:20], "cannot be|not an image"),
        "bomb.png": (_png_of_size(20_000, 20_000), "limit|bomb"),
        "zero.png": (_png_of_size(0, 4), "cannot be|not an image|no pixels"),
        "float.tif": (encoded(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
    }
    for name, (content, reason) in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError, match=reason) as caught:
            media.read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(MediaError, match="missing.png: cannot be read"):
        media.read_image(tmp_path / "missing.png")
    with pytest.raises(MediaError, match="tar:7: not an image"):
        media.read_image(b"nothing", name="tar:7")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_just_over_the_limit_are_not_decoded():
    with pytest.raises(MediaError, match="more than the limit of 67108864"):
        media.read_image(_png_of_size(8193, 8192))


def _png_of_size(width: int, height: int) -> bytes:
    """A PNG that states a size and has almost no pixels."""

    def chunk(name, payload):
        checksum = struct.pack(">I", zlib.crc32(name + payload))
        return struct.pack(">I", len(payload)) + name + payload + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


# ------------------------------------------------------------------------------------- clips


def test_animated_webp_is_lossless_and_keeps_equal_frames(tmp_path):
    frames = np.stack([random_image(seed=i // 2) for i in range(6)])  # each frame twice
    media.write_webp(tmp_path / "a.webp", frames, fps=8 / 3.024)
    pixels, fps, seconds = media.read_video(tmp_path / "a.webp")
    assert np.array_equal(pixels, frames)
    assert fps == pytest.approx(8 / 3.024, rel=1e-3) and seconds == pytest.approx(6 / fps)
    with Image.open(tmp_path / "a.webp") as image:
        assert image.info["loop"] == 0


def test_frames_that_an_encoder_merged_come_apart_again():
    a, b, c = (Image.fromarray(random_image(seed=i)) for i in range(3))
    content = encoded(
        a, "GIF", save_all=True, append_images=[b, c], duration=[400, 100, 100], loop=0
    )
    pixels, fps, seconds = media.read_video(content)
    assert len(pixels) == 6 and fps == pytest.approx(10) and seconds == pytest.approx(0.6)
    assert np.array_equal(pixels[0], pixels[3]) and not np.array_equal(pixels[3], pixels[4])


def test_mp4_round_trip(tmp_path):
    clip = smooth_clip()
    media.write_mp4(tmp_path / "a.mp4", clip, fps=30)
    pixels, fps, seconds = media.read_video(tmp_path / "a.mp4")
    assert pixels.shape == clip.shape and fps == pytest.approx(30)
    assert seconds == pytest.approx(0.3)
    assert np.abs(pixels.astype(int) - clip).mean() < 3
    media.write_mp4(tmp_path / "odd.mp4", clip[:, :31, :47], fps=30)
    assert media.read_video(tmp_path / "odd.mp4")[0].shape == clip.shape


@pytest.mark.parametrize("name", ["a.mp4", "a.webp"])
def test_resampling_goes_by_time_stamps(tmp_path, name):
    clip = smooth_clip(12)
    write = media.write_mp4 if name.endswith("mp4") else media.write_webp
    write(tmp_path / name, clip, fps=30)
    pixels, fps, seconds = media.read_video(tmp_path / name, fps=10)
    assert fps == pytest.approx(10) and seconds == pytest.approx(0.4)
    shown = np.round(pixels[:, 3, 3, 2] / 20).astype(int)
    assert shown.tolist() == [0, 3, 6, 9]
    pixels, _, _ = media.read_video(tmp_path / name, fps=60, max_frames=5)
    assert np.round(pixels[:, 3, 3, 2] / 20).astype(int).tolist() == [0, 0, 1, 1, 2]
    assert len(media.read_video(tmp_path / name, max_frames=2)[0]) == 2


def test_bad_clips_are_one_sentence_that_names_the_file(tmp_path):
    media.write_mp4(tmp_path / "a.mp4", smooth_clip(), fps=30)
    whole = (tmp_path / "a.mp4").read_bytes()
    for content in (b"", b"no film at all, only text", whole[: len(whole) // 2]):
        (tmp_path / "bad.mp4").write_bytes(content)
        with pytest.raises(MediaError, match="bad.mp4: "):
            media.read_video(tmp_path / "bad.mp4")
    media.write_webp(tmp_path / "a.webp", smooth_clip(), fps=30)
    whole = (tmp_path / "a.webp").read_bytes()
    with pytest.raises(MediaError, match="<[0-9]+ bytes>: "):
        media.read_video(whole[: len(whole) // 2])


def test_a_clip_too_long_to_decode_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("emu3_jax.data.media.sizes.MAX_CLIP_PIXELS", 32 * 48 * 4)
    for name, write in (("a.mp4", media.write_mp4), ("a.webp", media.write_webp)):
        write(tmp_path / name, smooth_clip(), fps=30)
        with pytest.raises(MediaError, match="frame limit or a lower frame rate"):
            media.read_video(tmp_path / name)
    assert len(media.read_video(tmp_path / "a.mp4", max_frames=4)[0]) == 4


# ----------------------------------------------------------------------------------- writing


def test_png_carries_its_metadata(tmp_path):
    media.write_png(tmp_path / "new" / "a.png", random_image(), {"prompt": "a cat, 雪", "seed": 3})
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.text == {"prompt": "a cat, 雪", "seed": "3"}
    assert np.array_equal(media.read_image(tmp_path / "new" / "a.png"), random_image())


def test_a_failing_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    media.write_png(tmp_path / "a.png", random_image())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        media.write_png(tmp_path / "a.png", random_image(seed=1))
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    assert np.array_equal(media.read_image(tmp_path / "a.png"), random_image())
    with pytest.raises(ValueError, match="expected uint8"):
        media.write_png(tmp_path / "b.png", random_image().astype(np.float32))
