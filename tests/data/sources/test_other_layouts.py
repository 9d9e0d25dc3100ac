"""Rows and members as other projects write them, and of any size: a problem with its reason."""

import io
import json
import tarfile
import tracemalloc

import pytest

from emu3_jax.data.sources import folder, open_source, row_files, webdataset

TALK = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a cat"}]
CHAT, PATH = '"turns": ', '"image" or "video"'


def of_a_folder(tmp_path, *rows):
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    return list(open_source("train.jsonl", tmp_path).items(0))


def of_a_tar(tmp_path, **members):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for ending, content in members.items():
            info = tarfile.TarInfo(f"o.{ending}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return list(open_source("webdataset:0.tar", tmp_path).items(0))


@pytest.mark.parametrize(
    "row, key, expected",
    [
        ({"image": "a.jpg", "conversations": TALK}, "conversations", CHAT),
        ({"messages": [{"role": "user", "content": "what?"}]}, "messages", CHAT),
        ({"file_name": "a dog.jpg", "text": "a dog"}, "file_name", PATH),
        ({"image_id": 42, "caption": "a dog"}, "image_id", PATH),
        ({"images": ["a.jpg"], "text": "a dog"}, "images", PATH),
        ({"photo": "some/a.webp", "text": "a dog"}, "photo", PATH),
        ({"frames": ["a.png", "b.png"], "caption": "a dog"}, "frames", PATH),
        ({"clip_uri": "a.MP4", "title": "a dog"}, "clip_uri", PATH),
    ],
)
def test_keys_of_other_layouts_are_a_problem_that_names_them(row, key, expected, tmp_path):
    """They would be attributes: of a text without its image, or of an image without its chat."""
    (item,) = of_a_folder(tmp_path, {"id": 1, **row, "source": "web"})
    names = ", ".join(map(repr, ["id", *row, "source"]))
    assert f"the key '{key}' is not read; expected " in item.problem and expected in item.problem
    assert f"(found {names})" in item.problem
    medium = {"jpg": b"x"} if "image" in row else {}
    (item,) = of_a_tar(tmp_path, **medium, json=json.dumps(row).encode())
    assert f"the key '{key}' is not read; expected " in item.problem and expected in item.problem


def test_the_same_keys_beside_what_is_read_are_attributes(tmp_path):
    rows = [
        {"text": "a dog", "image": "a.jpg", "image_id": 4, "file_name": "a.jpg"},
        {"caption": "a.jpg", "link": "see a.jpg there", "images": [], "video_id": None},
        {"text": "a chat as text", "messages": TALK},
        {"turns": [{"question": "q", "answer": "a", "image": "a.jpg"}], "conversations": TALK},
        {"segments": [{"text": "q"}, {"video": "a.mp4"}], "video_id": 3},
    ]
    items = of_a_folder(tmp_path, *({"id": i, **row} for i, row in enumerate(rows)))
    assert [item.problem for item in items] == [""] * len(rows)
    assert [item.kind for item in items] == ["image", "text", "text", "chat", "document"]
    (item,) = of_a_tar(tmp_path, jpg=b"x", json=b'{"caption": "a", "url": "http://x/a.jpg"}')
    assert (item.problem, item.kind, item.text) == ("", "image", "a")


def test_rows_without_an_id_say_what_they_have(tmp_path):
    many = {f"k{i}": i for i in range(20)}
    items = of_a_folder(tmp_path, {"file_name": "a.jpg", "text": "a"}, "[1]", many, {}, "[")
    expected = 'expected an object with the keys "id" and "text", found '
    found = ["'file_name', 'text'", "a list", ", ".join(f"'k{i}'" for i in range(12)) + ", …"]
    assert items.pop().problem.startswith("not a JSON row, expected one object per line (Expect")
    assert [item.problem for item in items] == [expected + one for one in [*found, "no key"]]


def test_a_row_of_any_length_costs_itself_alone_and_is_not_held(tmp_path, monkeypatch):
    limit = 3_000_000
    monkeypatch.setattr(row_files, "MAX_TEXT_BYTES", limit)
    fits = json.dumps({"id": "fits", "text": ""})
    fits = fits[:-2] + "x" * (limit - len(fits)) + fits[-2:]
    lines = ['{"id": 0, "text": "a"}', "y" * 50_000_000, fits, " " * (limit + 1)]
    (tmp_path / "train.jsonl").write_text("\n".join([*lines, '{"id": 4, "text": "b"}']))
    tracemalloc.start()
    source = folder.FolderSource(tmp_path / "train.jsonl", items_per_shard=2)
    found = [[(i.key, len(i.text), i.problem) for i in source.items(s)] for s in range(3)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    where = f"{tmp_path}/train.jsonl"
    most = f"at most {limit} are read"
    assert found == [
        [("0", 1, ""), (f"{where}:2", 0, f"a row of 50000001 bytes, {most}")],
        [("fits", limit - 26, ""), (f"{where}:4", 0, f"a row of {limit + 2} bytes, {most}")],
        [("4", 1, "")],
    ]
    assert peak < 6 * limit


@pytest.mark.parametrize("ending", ["txt", "json"])
def test_a_caption_in_a_tar_has_a_limit_of_its_own(ending, tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MAX_TEXT_BYTES", 100)
    content = json.dumps({"caption": "x" * 200}).encode()
    (item,) = of_a_tar(tmp_path, jpg=b"x" * 300, **{ending: content})
    assert item.problem == f"the member o.{ending} has {len(content)} bytes, at most 100 are read"
