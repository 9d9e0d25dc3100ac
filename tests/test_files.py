"""Files and folders are written atomically, and errors name them.

Those in a bucket: see test_bucket.py.
"""

import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from emu3_jax.files import (
    AppendedLines,
    new_folder,
    read_json,
    read_lines,
    replacing,
    write_atomically,
    write_json,
    written_whole,
)


def full(*_, **__):
    raise OSError(28, "No space left on device")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------- files


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "new" / "folder" / "a"
    for content in (b"\0bytes", "text, 雪\n"):
        write_atomically(path, content)
        assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    write_json(str(path), {"one": [1, "雪"]})
    assert read_json(path) == {"one": [1, "雪"]}
    assert names(path.parent) == ["a"]


def full_after_a_byte(self, content):
    with open(self, "wb") as file:
        file.write(content[:1])
    full()


@pytest.mark.parametrize(
    "where, fails", [("os.replace", full), ("pathlib.Path.write_bytes", full_after_a_byte)]
)
def test_a_failing_write_leaves_the_old_file_and_no_temporary(where, fails, tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_atomically(path, b"old")
    monkeypatch.setattr(where, fails)
    with pytest.raises(OSError) as raised:
        write_atomically(path, b"new")
    assert str(raised.value) == f"{path} cannot be written: No space left on device"
    assert raised.value.errno == 28
    assert names(tmp_path) == ["a"] and path.read_bytes() == b"old"


def test_a_process_killed_before_the_rename_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    write_atomically(path, b"old")
    program = (
        "import os, signal, sys; from emu3_jax import files\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_atomically(sys.argv[1], b'new')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path])
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(names(tmp_path)) == 2  # what it had written, under a hidden name
    write_atomically(path, b"newer")
    assert path.read_bytes() == b"newer"


def _write_often(path, letter):
    for _ in range(200):
        write_atomically(path, letter * 100_000)


def test_two_processes_that_write_one_name_do_not_mix(tmp_path):
    path = tmp_path / "a"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_often, args=(path, letter)) for letter in "xy"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            content = path.read_text()
            assert len(content) == 100_000 and len(set(content)) == 1
        time.sleep(0.001)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert names(tmp_path) == ["a"]


def test_two_writers_of_one_file_do_not_share_a_temporary_name(tmp_path, monkeypatch):
    rename, nested = os.replace, []

    def slow_replace(source, target):
        if not nested:
            nested.append(source)
            write_atomically(tmp_path / "plan.json", b"the other's")
        rename(source, target)

    monkeypatch.setattr(os, "replace", slow_replace)
    write_atomically(tmp_path / "plan.json", b"mine")
    assert (tmp_path / "plan.json").read_bytes() == b"mine"
    assert names(tmp_path) == ["plan.json"]


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path, message in [
        ("file/a", f"{tmp_path}/file cannot be written: it is a file, expected a folder"),
        ("file/b/a", f"{tmp_path}/file/b cannot be written: Not a directory"),
        ("folder", f"{tmp_path}/folder cannot be written: Is a directory"),
    ]:
        with pytest.raises(OSError) as raised:
            write_atomically(tmp_path / path, b"x")
        assert str(raised.value) == message
    assert names(tmp_path) == ["file", "folder"]


def test_a_temporary_that_vanishes_is_told_by_its_class(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path}/a cannot be written: No such file"):
        with written_whole(tmp_path / "a"):
            pass


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match=f"{tmp_path}/a cannot be written: Permission denied"):
        write_atomically(tmp_path / "a", b"x")


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    for other in (tmp_path.parent / "elsewhere", tmp_path / "ab"):
        message = re.escape(f"[Errno 2] No such file or directory: '{other}'")
        with pytest.raises(FileNotFoundError, match=message), written_whole(tmp_path / "a"):
            other.read_bytes()
    assert names(tmp_path) == []


def test_what_is_no_json_object_is_named(tmp_path):
    path = tmp_path / "a.json"
    for content, message in [
        (None, "a.json cannot be read: No such file"),
        ("{", "a.json is not JSON"),
        (b"\xff", "a.json is not JSON"),
        ("[]", "a.json holds a list, expected a JSON object"),
    ]:
        if content is not None:
            write_atomically(path, content)
        with pytest.raises(ValueError, match=message):
            read_json(path)


# ----------------------------------------------------------------------------------- folders


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "model"
    with pytest.raises(OSError, match="full"), new_folder(path) as folder:
        (folder / "a").write_text("one")
        raise OSError("the disk is full")
    assert names(path.parent) == []
    path.mkdir()  # an empty one is no obstacle
    with new_folder(path) as folder:
        (folder / "a").write_text("one")
        assert names(path) == []
    assert names(path.parent) == ["model"] and names(path) == ["a"]
    with pytest.raises(OSError, match=f"{path} cannot be written: Directory not empty"):
        with new_folder(path) as folder:
            (folder / "b").write_text("two")
    assert names(path.parent) == ["model"] and names(path) == ["a"]


def test_a_folder_takes_the_place_of_an_earlier_one(tmp_path, monkeypatch):
    path = tmp_path / "model"
    for name in ("one", "two"):
        with replacing(path) as folder:
            (folder / name).write_text(name)
        assert names(path) == [name] and names(tmp_path) == ["model"]
    with pytest.raises(OSError, match="full"), replacing(path) as folder:
        (folder / "three").write_text("three")
        raise OSError("the disk is full")
    assert names(path) == ["two"] and names(tmp_path) == ["model"]
    rename = pathlib.Path.rename

    def fails(self, target):
        return full() if target == path and (self / "three").exists() else rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", fails)
    with pytest.raises(OSError, match=f"{path} cannot be written: No space left"):
        with replacing(path) as folder:
            (folder / "three").write_text("three")
    assert names(path) == ["two"] and names(tmp_path) == ["model"]


def test_a_file_in_a_new_folder_is_named_by_the_place_it_would_have(tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match=f"^{tmp_path}/model/a cannot be written: No space left"):
        with replacing(tmp_path / "model") as folder:
            write_atomically(folder / "a", b"x")


# ------------------------------------------------------------------------------------- lines


def test_lines_are_there_at_once_and_a_cut_one_costs_itself_alone(tmp_path):
    lines = AppendedLines(tmp_path / "run", "log")
    assert not lines.continued and not (tmp_path / "run").exists()
    for n in range(2):
        lines.append({"n": n})
        assert read_lines(tmp_path / "run", "log")[-1] == {"n": n}
    lines.close()
    path = tmp_path / "run" / "log"
    path.write_bytes(path.read_bytes()[:-3])
    lines = AppendedLines(tmp_path / "run", "log")
    assert lines.continued
    lines.append({"n": 2})
    lines.close()
    assert read_lines(tmp_path / "run", "log") == [{"n": 0}, {"n": 2}]
    with pytest.raises(ValueError, match="other does not exist: no run has written a log there"):
        read_lines(tmp_path, "other")
