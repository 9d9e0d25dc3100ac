"""Odd names in tars: an example is stored with its medium, or it is a problem with a reason."""

import io
import json
import re
import tarfile

import pytest

from emu3_jax.data.sources import open_source, webdataset


def read(tmp_path, members, mode="w"):
    """The items of a tar with these (name, content) members; the content is the name by default."""
    with tarfile.open(tmp_path / "0.tar", mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return list(open_source("webdataset:0.tar", tmp_path).items(0))


def named(*names):
    return [(name, name.encode()) for name in names]


def stored(items):
    """(key, kind, medium, text) of the usable items."""
    return [
        (i.key, i.kind, (i.image or i.video or b"").decode(), i.text)
        for i in items
        if not i.problem
    ]


def test_dots_in_the_key(tmp_path):
    names = [f"photo.2023.{i}.{ending}" for i in range(20) for ending in ("jpg", "txt")]
    key = "photo.2023."
    assert stored(read(tmp_path, named(*names))) == [
        (f"{key}{i}", "image", f"{key}{i}.jpg", f"{key}{i}.txt") for i in range(20)
    ]
    # The same name alone in its tar has the same key.
    assert stored(read(tmp_path, named(*names[:2])))[0][0] == "photo.2023.0"
    found = stored(read(tmp_path, named("a/v1.b/x.0.mp4", "a/v1.b/x.0.txt")))
    assert found == [("a/v1.b/x.0", "video", "a/v1.b/x.0.mp4", "a/v1.b/x.0.txt")]


@pytest.mark.parametrize(
    "ending, kind",
    [("jfif", "image"), ("JPG", "image"), ("avif", "image"), ("input.jpg", "image")]
    + [("mpg", "video"), ("ts", "video"), ("MP4", "video"), ("ogv", "video")],
)
def test_endings_that_are_known(ending, kind, tmp_path):
    items = read(tmp_path, named(f"o1.{ending}", "o1.txt"))
    assert stored(items) == [("o1", kind, f"o1.{ending}", "o1.txt")]


def test_a_clip_with_its_thumbnail(tmp_path):
    for names in (("o1.mp4", "o1.jpg", "o1.txt"), ("o1.jpg", "o1.txt", "o1.thumb.mp4")):
        items = read(tmp_path, named(*names))
        assert [(i.kind, i.text, i.image) for i in items] == [("video", "o1.txt", None)]


def test_members_without_a_role_beside_a_medium(tmp_path):
    names = ("o1.jpg", "o1.cls", "o1.txt", "o1.seg.npy")
    assert stored(read(tmp_path, named(*names))) == [("o1", "image", "o1.jpg", "o1.txt")]


@pytest.mark.parametrize(
    "names, keys, reason",
    [
        (("o1.input.jpg", "o1.target.jpg", "o1.txt"), ["o1.input", "o1.target"], "several members"),
        (("o1.jpg", "o1.seg.png", "o1.txt"), ["o1", "o1.seg"], "several members"),
        (("o1.jpg", "o1.txt", "o1.seg.png"), ["o1", "o1.seg"], "several members"),
        (("o1.jpg", "o1.en.txt", "o1.zh.txt"), ["o1.en", "o1.zh"], "o1.en.txt, o1.zh.txt"),
        (("o1.jpg", "o1.JPG", "o1.txt"), ["o1", "o1"], "o1.jpg, o1.JPG"),
        (("1.jpg", "1.txt", "1.jpg", "1.txt"), ["1", "1"], r"\(1.jpg, 1.jpg\); expected one"),
        (("o1.heic", "o1.txt"), ["o1"], r"ending of an image or a clip \(o1.heic, o1.txt\)"),
        (("o1.wav", "o1.json"), ["o1"], "ending of an image or a clip"),
        (("README",), ["README"], "ending of an image or a clip"),
        (tuple(f"p.{i}.jpg" for i in range(6)), [f"p.{i}" for i in range(6)], "p.3.jpg and 2 more"),
    ],
)
def test_what_names_leave_open_is_a_problem(names, keys, reason, tmp_path):
    members = [(name, b"{}" if name.endswith("json") else name.encode()) for name in names]
    items = read(tmp_path, [*named("a.jpg", "a.txt"), *members, *named("z.jpg", "z.txt")])
    assert [key for key, *_ in stored(items)] == ["a", "z"]
    problems = [item for item in items if item.problem]
    assert [item.key for item in problems] == keys
    assert all(re.search(reason, item.problem) for item in problems)


def test_members_of_a_key_that_are_not_adjacent(tmp_path):
    items = read(tmp_path, named("1.jpg", "2.jpg", "1.txt", "2.txt"))
    assert [bool(item.problem) for item in items] == [False, False, True, True]
    assert "must be adjacent" in items[2].problem


def test_hidden_files_are_passed_over(tmp_path):
    names = ("._o1.jpg", "o1.jpg", "._o1.txt", "o1.txt", "__MACOSX/._o1.jpg", ".DS_Store")
    items = read(tmp_path, named(*names))
    assert len(items) == 1 and stored(items) == [("o1", "image", "o1.jpg", "o1.txt")]


def test_links_and_members_that_are_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MAX_MEMBER_BYTES", 100)
    members = [("1.jpg", b"x" * 101), *named("1.txt", "2.jpg", "2.txt"), ("2.npy", b"x" * 101)]
    large, other = read(tmp_path, members)
    assert "1.jpg has 101 bytes, at most 100 are read" in large.problem and not other.problem
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"{kind.decode()}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    problems = [i.problem for i in open_source("webdataset:0.tar", tmp_path).items(0)]
    assert len(problems) == 3 and all("is a link or a device" in p for p in problems)


def test_a_missing_caption_that_img2dataset_wrote_as_a_word(tmp_path):
    for value, text in ((float("nan"), ""), (None, ""), ("nan", "nan")):
        described = json.dumps({"caption": value}).encode()
        (item,) = read(tmp_path, [("1.jpg", b"x"), ("1.txt", b"nan"), ("1.json", described)])
        assert item.text == text
