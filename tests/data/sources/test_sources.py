"""Raw corpora: folders with jsonl, tars, TFDS, and the embedded emoji."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from small_corpora import small_zip

from emu3_jax.data import fluent_emoji, media
from emu3_jax.data.sources import FolderSource, SourceError, open_source


def png(value=0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (value,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def all_items(source):
    return [item for shard in range(source.num_shards) for item in source.items(shard)]


# ------------------------------------------------------------------------------------ folder


def test_folder_rows_in_shards(tmp_path):
    rows = [{"id": i, "text": f"t{i}", "colour": i} for i in range(7)]
    rows[2] |= {"image": "images/2.png"}
    rows[3] |= {"video": "3.mp4"}
    path = write_rows(tmp_path / "train.jsonl", rows)
    source = FolderSource(path, items_per_shard=3)
    assert (source.num_shards, len(source), source.name) == (3, 7, "train")
    assert [[item.key for item in source.items(s)] for s in range(3)] == [
        ["0", "1", "2"],
        ["3", "4", "5"],
        ["6"],
    ]
    items = all_items(source)
    assert [item.kind for item in items] == ["text"] * 2 + ["image", "video"] + ["text"] * 3
    assert items[2].image == str(tmp_path / "images/2.png")
    assert items[5].attributes == {"colour": 5} and items[5].text == "t5"
    assert items[5].where == f"{path}:6"


def test_blank_lines_do_not_count(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"id": 1, "text": "a"}\n\n\n{"id": 2, "text": "b"}\n{"id": 3, "text": "c"}')
    source = FolderSource(path, items_per_shard=2)
    assert [[item.key for item in source.items(s)] for s in range(2)] == [["1", "2"], ["3"]]
    assert [item.where[-2:] for item in all_items(source)] == [":2", ":5", ":6"]


def test_bad_rows_are_items_with_a_problem(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = ["{broken", "[1]", '{"text": "no id"}', '{"id": 1, "image": ["a"]}']
    lines += ['{"id": 2, "text": 5}', '{"id": 3, "image": 5}', '{"id": 4, "turns": "no list"}']
    path.write_text("\n".join([*lines, '{"id": 5, "text": "good"}']))
    problems = [item.problem for item in all_items(FolderSource(path))]
    assert all(problems[:-1]) and not problems[-1]
    assert "must be a path" in problems[3] and "string" in problems[4]


@pytest.mark.parametrize("value", ["", [], {}, 0, False, float("nan"), ["a.jpg"]])
@pytest.mark.parametrize("name", ["image", "video", "turns", "segments"])
def test_a_field_that_is_no_medium_is_not_taken_for_none(name, value, tmp_path):
    """It would make the row a text, without a word. Only null, and a list of nothing, are none."""
    rows = [{"id": 1, "text": "a", name: value}, {"id": 2, "text": "a", name: None}]
    odd, none = all_items(FolderSource(write_rows(tmp_path / "a.jsonl", rows)))
    empty_list = value == [] and name in ("turns", "segments")
    assert (none.kind, none.problem, bool(odd.problem)) == ("text", "", not empty_list)
    parts = {"id": 1, "segments": [{"image": value, "text": "a"}]}
    (part,) = all_items(FolderSource(write_rows(tmp_path / "b.jsonl", [parts])))
    assert '"image" must be a path' in part.problem


@pytest.mark.parametrize("beside", ["image", "video", "text", "segments"])
def test_a_chat_or_a_document_has_nothing_beside_it(beside, tmp_path):
    """A medium beside the turns would be lost, one beside segments take the part of another."""
    row = {"id": 1, "turns": [{"question": "q", "answer": "a"}], beside: "a.jpg"}
    if beside == "segments":
        row["segments"] = [{"text": "a"}]
    (item,) = all_items(FolderSource(write_rows(tmp_path / "a.jsonl", [row])))
    assert "alone, found" in item.problem and beside in item.problem


@pytest.mark.parametrize("key", [None, float("nan"), [1], {}, True])
def test_an_id_that_is_no_name(key, tmp_path):
    (item,) = all_items(FolderSource(write_rows(tmp_path / "a.jsonl", [{"id": key, "text": "a"}])))
    assert item.problem.startswith('"id" must be a string or a number') and item.key == item.where


def test_an_image_beside_a_clip_is_its_thumbnail(tmp_path):
    rows = [{"id": 1, "text": "a", "image": "a.jpg", "video": "a.mp4"}]
    rows += [{"id": 2, "segments": [{"image": "a.jpg", "video": "a.mp4"}]}]
    clip, document = all_items(FolderSource(write_rows(tmp_path / "a.jsonl", rows)))
    assert (clip.kind, clip.image, clip.video) == ("video", None, str(tmp_path / "a.mp4"))
    assert clip.attributes == {"image": "a.jpg"}
    assert "found both" in document.problem


def test_documents_and_chats(tmp_path):
    rows = [
        {"id": "d", "segments": [{"text": "see"}, {"image": "a.png"}, {"text": "there"}]},
        {"id": "c", "turns": [{"question": "what?", "answer": "a cat", "image": "a.png"}]},
    ]
    document, chat = all_items(FolderSource(write_rows(tmp_path / "a.jsonl", rows)))
    assert (document.kind, chat.kind) == ("document", "chat")
    assert document.segments[1]["image"] == chat.turns[0]["image"] == str(tmp_path / "a.png")


def test_an_empty_or_missing_corpus_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(SourceError, match="a.jsonl: the corpus is empty"):
        FolderSource(tmp_path / "a.jsonl")
    with pytest.raises(SourceError, match="b.jsonl: cannot be read"):
        open_source("b.jsonl", tmp_path)
    with pytest.raises(SourceError, match="is not a corpus; expected"):
        open_source("something", tmp_path)


# -------------------------------------------------------------------------------------- tars


def write_tar(path, members: dict[str, bytes]):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_webdataset_layout(tmp_path):
    described = json.dumps({"caption": "from json", "width": 16}).encode()
    write_tar(
        tmp_path / "00000.tar",
        {"000.jpg": png(1), "000.txt": b"a cat\n", "000.json": described, "001.txt": b"text only"},
    )
    write_tar(
        tmp_path / "00001.tar",
        {"a/002.mp4": b"film", "a/002.json": described, "a/003.png": b"", "a/004.json": b"{"},
    )
    for spec in ("webdataset:{00000..00001}.tar", "webdataset:*.tar", "webdataset:."):
        source = open_source(spec, tmp_path)
        assert source.num_shards == 2
    first, second = list(source.items(0))
    assert (first.key, first.text, first.image) == ("000", "a cat", png(1))
    assert first.attributes == {"caption": "from json", "width": 16}
    assert (second.kind, second.text) == ("text", "text only")
    film, empty, broken = list(source.items(1))
    assert (film.key, film.video, film.text) == ("a/002", b"film", "from json")
    assert "empty" in empty.problem and "unreadable" in broken.problem
    assert broken.where == f"{tmp_path}/./00001.tar:a/004".replace("/./", "/")


def test_bad_tars(tmp_path):
    with pytest.raises(SourceError, match="no tar file"):
        open_source("webdataset:*.tar", tmp_path)
    write_tar(tmp_path / "00.tar", {f"{i}.txt": b"x" * 2000 for i in range(20)})
    with pytest.raises(SourceError, match="01.tar: does not exist"):
        open_source("webdataset:{00..01}.tar", tmp_path)
    whole = (tmp_path / "00.tar").read_bytes()
    (tmp_path / "00.tar").write_bytes(whole[:20_000])
    with pytest.raises(SourceError, match="00.tar: cannot be read as a tar"):
        list(open_source("webdataset:*.tar", tmp_path).items(0))


# -------------------------------------------------------------------------------------- TFDS


def test_tfds_that_exists_locally(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")

    class LocalPictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                    "number": np.int64,
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(5):
                yield i, {"image": io.BytesIO(png(i)), "label": i % 2, "number": i}

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    LocalPictures(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    source = open_source("tfds:local_pictures:train", items_per_shard=3)
    assert source.num_shards == 2
    items = all_items(source)
    assert [item.text for item in items].count("dog") == 2
    for item in items:
        assert item.kind == "image" and item.image.shape == (16, 16, 3)
        assert item.image[0, 0, 0] == item.attributes["number"]


def test_tfds_that_does_not_exist_locally(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(SourceError, match="tfds:no_such_dataset_here: cannot be read"):
        open_source("tfds:no_such_dataset_here:train")


# ------------------------------------------------------------------------------------- emoji


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_embedded_corpus_as_a_folder(tmp_path):
    kept = small_zip(tmp_path / "small.zip")
    folder = fluent_emoji.prepare(tmp_path / "small.zip", tmp_path / "emoji")
    assert fluent_emoji.prepare("not even opened", folder) == folder
    for split in fluent_emoji.SPLITS:
        expected = [row for row in kept if row["split"] == split]
        items = all_items(FolderSource(folder / f"{split}.jsonl"))
        assert [i.key for i in items if i.kind == "image"] == [row["id"] for row in expected]
        for item in items:
            assert item.text and item.attributes["base"]
            if item.kind == "image":
                assert media.read_image(item.image).shape == (64, 64, 3)
            else:
                pixels, _, seconds = media.read_video(item.video)
                assert pixels.shape == (8, 64, 64, 3)
                assert seconds == pytest.approx(item.attributes["seconds"], abs=0.002)
    texts = all_items(FolderSource(folder / "text.jsonl"))
    assert len(texts) == sum(row["split"] == "train" for row in kept)
    assert texts[0].text.startswith(kept[0]["caption"] + ". tags: ")


def test_a_bad_corpus_zip_leaves_nothing(tmp_path):
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="bad.zip: cannot be unpacked"):
        fluent_emoji.prepare(tmp_path / "bad.zip", tmp_path / "emoji")
    assert [file.name for file in tmp_path.iterdir()] == ["bad.zip"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="full: is not empty"):
        fluent_emoji.prepare(tmp_path / "bad.zip", tmp_path / "full")
