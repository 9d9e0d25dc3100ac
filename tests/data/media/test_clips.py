"""Clips that are cut short, turned, widened, too large, or no plain file."""

import io

import numpy as np
import pytest
from films import animation, clip_pixels, cover_first, film, index_first
from PIL import Image

from emu3_jax.data import media
from emu3_jax.data.media import MediaError, PixelLimits, sizes
from emu3_jax.data.sources import RawItem
from emu3_jax.tokenize.prepare import MediaRules, prepare

ONE = 1 << 16
LAST = (0, 0, 1 << 30)


WHOLE = {
    "MP4, index last": film,
    "MP4, index first": lambda: index_first(film()),
    "Matroska": lambda: film("matroska"),
    "WebM": lambda: film("webm", "libvpx"),
    "AVI": lambda: film("avi", "mpeg4"),
    "FLV": lambda: film("flv"),
    "MPEG-TS": lambda: film("mpegts"),
    "GIF": lambda: animation("GIF", clip_pixels(), 125),
    "APNG": lambda: animation("PNG", clip_pixels(), 125),
    "WebP": lambda: animation("WEBP", clip_pixels(), 125),
}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("max_frames", [None, 2])
def test_a_clip_cut_short_is_refused_and_a_whole_one_is_not(kind, max_frames):
    content = WHOLE[kind]()
    pixels, fps, seconds = media.read_video(content)
    assert pixels.shape == (16, 48, 64, 3)
    assert fps == pytest.approx(8, rel=0.05) and seconds == pytest.approx(2, rel=0.05)
    if max_frames and kind in ("GIF", "APNG", "WebP"):
        return  # of an animation no more than the needed frames is read
    for share in (0.9, 0.75, 0.6, 0.3):
        with pytest.raises(MediaError, match="a.film: "):
            media.read_video(content[: int(share * len(content))], 8, max_frames, "a.film")


def test_the_message_names_what_is_stated_and_what_is_there():
    content = film("matroska")
    with pytest.raises(MediaError, match=r"cut short: .* states 2.000 s, found 1.* s and 1. f"):
        media.read_video(content[: int(0.8 * len(content))])
    content = index_first(film())
    with pytest.raises(MediaError, match=rf"state {len(content)} bytes, found 9\d\d"):
        media.read_video(content[:999])
    content = film("mpegts")
    with pytest.raises(MediaError, match="packets of 188 bytes, found 12 bytes after the last"):
        media.read_video(content[: 188 * 9 + 12])


@pytest.mark.parametrize("container", ["matroska", "mpegts", "flv"])
def test_a_clip_with_a_hole_is_refused(container):
    content = film(container, left_out=range(4, 12))
    with pytest.raises(MediaError, match=r"hole: .* end at .* s, and the next one that can"):
        media.read_video(content)
    assert len(media.read_video(content, max_frames=3)[0]) == 3


def test_a_stream_cut_between_its_packets_keeps_its_rate_or_is_refused():
    content = film("mpegts", between=3)
    refused = 0
    for end in range(len(content) // 3 // 188 * 188, len(content), 5 * 188):
        try:
            assert media.read_video(content[:end])[1] == pytest.approx(8)
        except MediaError:
            refused += 1
    assert refused > 3


def test_damage_inside_a_clip_is_refused():
    content = film("mpegts")
    lost = content[: 188 * 40] + content[188 * 52 :]
    with pytest.raises(MediaError, match="damaged|hole"):
        media.read_video(lost)
    content = film()
    middle = len(content) // 2
    with pytest.raises(MediaError):
        media.read_video(content[:middle] + bytes(800) + content[middle + 800 :])


@pytest.mark.parametrize("between", [0, 3])
def test_a_frame_of_an_mp4_may_be_shown_for_long(between):
    content = film(times=[0, 1, 2, 20, 21, 22], between=between)
    frames, fps, seconds = media.read_video(content, fps=4)
    assert len(frames) == 12 and fps == 4 and seconds == 3
    assert np.round(frames[:, 8, 8, 2] / 10).tolist() == [0] + [2] * 9 + [3, 5]


def test_a_long_film_is_refused_at_its_first_frame(monkeypatch):
    converted = []

    def fit(height, width):
        converted.append((height, width))
        return height, width

    monkeypatch.setattr("emu3_jax.data.media.sizes.MAX_CLIP_PIXELS", 48 * 64 * 15)
    with pytest.raises(MediaError, match="16 frames of 64x48 pixels"):
        media.read_video(film(), fit=fit)
    assert converted == [(48, 64)]


MATRICES = {
    "as stored": ((ONE, 0, 0, 0, ONE, 0), lambda x: x),
    "90": ((0, -ONE, 0, ONE, 0, 0), lambda x: np.rot90(x, 1)),
    "180": ((-ONE, 0, 0, 0, -ONE, 0), lambda x: np.rot90(x, 2)),
    "270": ((0, ONE, 0, -ONE, 0, 0), lambda x: np.rot90(x, 3)),
    "mirrored": ((-ONE, 0, 0, 0, ONE, 0), lambda x: x[:, ::-1]),
    "upside down": ((ONE, 0, 0, 0, -ONE, 0), lambda x: x[::-1]),
    "transposed": ((0, ONE, 0, ONE, 0, 0), lambda x: x.swapaxes(0, 1)),
    "90, mirrored": ((0, -ONE, 0, -ONE, 0, 0), lambda x: np.rot90(x, 1)[:, ::-1]),
}


@pytest.mark.parametrize("name", MATRICES)
def test_the_display_matrix_turns_and_mirrors(name):
    matrix, expected = MATRICES[name]
    frames = media.read_video(film(matrix=(*matrix, *LAST)))[0]
    stored = expected(clip_pixels()[0])
    assert frames[0].shape == stored.shape
    assert np.abs(frames[0].astype(int) - stored).mean() < 6


@pytest.mark.parametrize(("aspect", "width"), [("2", 128), ("4/3", 85), ("1/2", 32)])
def test_pixels_become_square(aspect, width):
    frames = media.read_video(film(aspect=aspect))[0]
    assert frames.shape == (16, 48, width, 3)
    wide = np.asarray(Image.fromarray(clip_pixels()[0]).resize((width, 48)))
    assert np.abs(frames[0].astype(int) - wide).mean() < 6
    turned = film(aspect=aspect, matrix=(0, -ONE, 0, ONE, 0, 0, *LAST))
    assert media.read_video(turned)[0].shape == (16, width, 48, 3)


def test_a_cover_image_is_not_the_film():
    import av

    content = cover_first(film(cover=True))
    with av.open(io.BytesIO(content)) as container:
        assert [stream.width for stream in container.streams.video] == [32, 64]
    assert media.read_video(content)[0].shape == (16, 48, 64, 3)


def test_avi_with_frames_out_of_order_has_even_times():
    frames, fps, _ = media.read_video(film("avi", between=3), fps=4)
    assert fps == 4 and np.round(frames[:, 8, 8, 2] / 10).tolist() == list(range(0, 16, 2))


def test_the_limit_counts_what_is_held():
    limits = PixelLimits(512 * 512, 512 * 512)
    content = animation("GIF", clip_pixels(12, 8, 8), 655350)
    assert len(content) < 10_000
    item = RawItem("a", video=content, where="a.gif")
    with pytest.raises(MediaError, match="a.gif: .* frames of 512x512 .* limit of 536870912"):
        prepare(item, MediaRules(limits, 4, 24.0))
    small = prepare(item, MediaRules(limits, 4, 24.0, max_frames=4)).media[0].pixels
    assert small.shape == (4, 512, 512, 3)
    decoded = RawItem("a", video=np.zeros((4000, 8, 8, 3), np.uint8), where="tfds", fps=8.0)
    with pytest.raises(MediaError, match="4000 frames of 512x512"):
        prepare(decoded, MediaRules(limits, 4))


def test_frames_are_resized_as_images_are():
    content = animation("WEBP", clip_pixels(4), 125)
    pixels = media.read_video(content)[0]
    fitted = media.read_video(content, fit=lambda height, width: (2 * height, width // 2))[0]
    np.testing.assert_array_equal(fitted, media.resize(pixels, 96, 32))


@pytest.mark.parametrize("ending", ["ffconcat", "m3u8", "sdp", "mpd", "y4m"])
def test_no_playlist_and_no_network_stream_is_opened(tmp_path, ending):
    target = tmp_path / "secret.ts"
    target.write_bytes(film("mpegts"))
    content = {
        "ffconcat": f"ffconcat version 1.0\nfile {target}\n",
        "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n",
        "sdp": "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=a\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
        "m=video 5004 RTP/AVP 96\r\n",
        "mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011">'
        f"<Period><BaseURL>{target}</BaseURL></Period></MPD>",
        "y4m": "YUV4MPEG2 W2 H2 F8:1 Ip A1:1 C420\nFRAME\n" + "a" * 6,
    }[ending]
    path = tmp_path / f"list.{ending}"
    path.write_text(content)
    with pytest.raises(MediaError, match=f"list.{ending}: .*cannot be opened.*containers MP4"):
        media.read_video(path)


def test_a_written_mp4_states_its_colours(tmp_path):
    import av

    colors = np.array([[200, 30, 60], [20, 180, 40], [30, 60, 220]], np.uint8)
    clip = np.repeat(np.repeat(colors[None, None], 48, 1), 16, 2)
    clip = np.broadcast_to(clip, (4, *clip.shape[1:]))
    media.write_mp4(tmp_path / "a.mp4", clip, fps=8)
    with av.open(str(tmp_path / "a.mp4")) as container:
        frame = next(container.decode(video=0))
        # 1: BT.709, and the range of video (16 to 235).
        stated = frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range
        assert [int(number) for number in stated] == [1, 1, 1, 1]
        luma = 16 + 219 / 255 * (colors @ [0.2126, 0.7152, 0.0722])
        assert np.abs(frame.to_ndarray()[20, 8:48:16] - luma).max() < 2
    read = media.read_video(tmp_path / "a.mp4")[0]
    assert np.abs(read[:, 20, 8::16].astype(int) - colors).max() < 5


@pytest.mark.parametrize("kind", [kind for kind in WHOLE if kind != "GIF"])  # it rounds to 0.12 s
@pytest.mark.parametrize("fps", [None, 4])
def test_a_part_is_as_a_clip_of_its_own(kind, fps):
    content = WHOLE[kind]()
    whole, _, _ = media.read_video(content)
    frames, rate, seconds = media.read_video(content, fps, part=(0.5, 1.25))
    np.testing.assert_array_equal(frames, whole[4 : 10 : 2 if fps else 1])
    assert rate == pytest.approx(fps or 8, rel=0.05)
    assert seconds == pytest.approx(0.75, rel=0.05)
    rest, _, _ = media.read_video(content, fps, part=(1.25, None))
    np.testing.assert_array_equal(rest, whole[10 :: 2 if fps else 1])
    first, _, _ = media.read_video(content, fps, 2, part=(0.0, 60.0))
    np.testing.assert_array_equal(first, whole[: 4 if fps else 2 : 2 if fps else 1])
    with pytest.raises(MediaError, match=r"a.film: the clip ends at 2\.\d* s, before the start 3"):
        media.read_video(content, fps, name="a.film", part=(3.0, None))


def test_a_part_begins_with_the_frame_that_is_shown_then():
    """Of frames shown for long, and between two of equal length."""
    still = animation("GIF", clip_pixels(3), [1000, 2000, 1000])
    whole, _, _ = media.read_video(still)
    frames, rate, _ = media.read_video(still, part=(1.5, 2.5))
    np.testing.assert_array_equal(frames, whole[1:2])
    frames, _, seconds = media.read_video(still, 2.0, part=(1.5, 3.5))
    np.testing.assert_array_equal(frames, whole[[1, 1, 1, 3]])
    assert seconds == 2
    frames, rate, seconds = media.read_video(film(), part=(0.55, 1.2))
    assert len(frames) == 6 and rate == pytest.approx(8) and seconds == pytest.approx(0.75)


@pytest.mark.parametrize("part", [(-1.0, None), (1.0, 1.0), (2.0, 1.0), (float("nan"), None)])
def test_a_part_that_is_none(part):
    with pytest.raises(ValueError, match="0 <= start < end"):
        media.read_video(film(), part=part)


@pytest.mark.parametrize("kind", ["Matroska", "WebP"])
def test_only_the_frames_of_a_part_count_and_are_held(monkeypatch, kind):
    content = WHOLE[kind]()
    monkeypatch.setattr(sizes, "MAX_CLIP_PIXELS", 4 * 48 * 64)
    with pytest.raises(MediaError, match="16 frames|5 frames"):
        media.read_video(content)
    assert len(media.read_video(content, part=(0.5, 1.0))[0]) == 4
    assert len(media.read_video(content, 2.0, part=(0.5, None))[0]) == 3
