"""Unpacking the embedded corpus: nothing incomplete stays, and several processes may do it."""

import json
import os
import zipfile

import pytest
from small_corpora import small_zip

from emu3_jax.data import fluent_emoji

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")


@pytest.mark.parametrize("reason", [KeyboardInterrupt(), ValueError("a strip of seven frames")])
def test_an_unpacking_that_stops_leaves_nothing(reason, tmp_path, monkeypatch):
    def stops(path, strip, caption):
        raise reason

    small_zip(tmp_path / "small.zip")
    monkeypatch.setattr(fluent_emoji, "write_clip", stops)
    with pytest.raises((KeyboardInterrupt, ValueError)) as raised:
        fluent_emoji.prepare(tmp_path / "small.zip", tmp_path / "emoji")
    if isinstance(reason, ValueError):
        assert "small.zip: cannot be unpacked as the emoji corpus (a strip" in str(raised.value)
    assert [file.name for file in tmp_path.iterdir()] == ["small.zip"]


def test_what_a_killed_process_left_goes_with_the_next(tmp_path):
    small_zip(tmp_path / "small.zip")
    (tmp_path / f".emoji.{os.getpid() + 1}.tmp" / "stills").mkdir(parents=True)
    (tmp_path / ".emojis.1.tmp").mkdir()  # another corpus's
    fluent_emoji.prepare(tmp_path / "small.zip", tmp_path / "emoji")
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"small.zip", "emoji", ".emojis.1.tmp"}


def test_the_slower_of_two_processes_takes_what_is_there(tmp_path, monkeypatch):
    small_zip(tmp_path / "small.zip")
    unpack, nested = fluent_emoji._unpack, []

    def slow(archive, folder):
        if not nested:
            nested.append(folder)
            fluent_emoji.prepare(tmp_path / "small.zip", tmp_path / "emoji")
        return unpack(archive, folder)

    monkeypatch.setattr(fluent_emoji, "_unpack", slow)
    folder = fluent_emoji.prepare(tmp_path / "small.zip", tmp_path / "emoji")
    assert (folder / fluent_emoji.DONE).exists()
    assert {file.name for file in tmp_path.iterdir()} == {"small.zip", "emoji"}


def _with_caption(path, **changes):
    """The small zip with its first caption changed."""
    small_zip(path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    first, *others = (json.loads(line) for line in entries["captions.jsonl"].splitlines())
    lines = [json.dumps(row) for row in (first | changes, *others)]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, "\n".join(lines) if name == "captions.jsonl" else content)
        for name in filter(None, changes.values()):
            archive.writestr(str(name), entries[first["still"]])


@pytest.mark.parametrize("name", ["../outside.webp", "stills/../../outside.webp", "/tmp/x/o.webp"])
@pytest.mark.parametrize("kind", ["still", "clip"])
def test_nothing_is_written_outside_of_the_folder(name, kind, tmp_path):
    _with_caption(tmp_path / "small.zip", **{kind: name})
    with pytest.raises(ValueError, match="small.zip: .*lies outside of the folder"):
        fluent_emoji.prepare(tmp_path / "small.zip", tmp_path / "emoji")
    assert [file.name for file in tmp_path.iterdir()] == ["small.zip"]


def test_a_zip_is_measured_before_it_is_unpacked(tmp_path, monkeypatch):
    small_zip(tmp_path / "small.zip")
    monkeypatch.setattr(fluent_emoji, "MAX_UNPACKED_BYTES", 1000)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("it was read"))
    with pytest.raises(ValueError, match="bytes unpacked are more than the limit of 1000"):
        fluent_emoji.prepare(tmp_path / "small.zip", tmp_path / "emoji")
