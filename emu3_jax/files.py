"""Atomic writes of files and folders, and logs that grow, on a disk or in a bucket.

A file is written under a temporary name in the same folder and then renamed: a process that is
killed leaves the earlier file as it was. An object in a bucket (gs://…) is atomic by itself. A
failed write raises an OSError whose sentence names the file and not its temporary name.
"""

import contextlib
import io
import json
import os
import pathlib
import shutil
import time
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO

from etils import epath

AnyPath = str | os.PathLike[str]

# 64 MiB: a text that data brings, such as a line of a jsonl file, is not held if it is longer.
MAX_TEXT_BYTES = 64 << 20

# An object in a bucket cannot grow and is rewritten, at most once in this many seconds.
REWRITE_EVERY = 60.0


def in_bucket(path: AnyPath) -> bool:
    """Whether `path` is a URL (gs://bucket/…) rather than a path on a disk."""
    return "://" in os.fspath(path)


def in_words(error: Exception) -> str:
    """Returns the message of an error; an OSError's as "FILE: reason", without its number."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def inside(folder: AnyPath, name: str) -> pathlib.Path:
    """The path of a file that data names, such as a row of a corpus; it must lie in `folder`.

    A link in the folder is followed: the owner of the folder made it.

    Raises:
      ValueError: an absolute path to somewhere else, or one that leaves the folder by "..".
    """
    path = os.path.join(folder, name)
    root = os.path.abspath(folder)
    if os.path.commonpath([root, os.path.abspath(path)]) != root:
        raise ValueError(f"{name!r} lies outside of the folder {os.fspath(folder)}")
    return pathlib.Path(path)


def lines_within(file: BinaryIO, limit: int) -> Iterator[tuple[bytes | None, int]]:
    """Yields (line, its bytes in the file); None for a line of more, which is never held whole."""
    while line := file.readline(limit + 1):
        length = len(line)
        if length <= limit or line.endswith(b"\n"):
            yield line, length
            continue
        while not line.endswith(b"\n") and (line := file.readline(1 << 20)):
            length += len(line)
        yield None, length


def write_atomically(path: AnyPath, content: bytes | str) -> None:
    """Writes a file atomically; text as UTF-8. Missing folders are created.

    Raises:
      OSError: names `path` and the reason, such as a full disk.
    """
    content = content.encode() if isinstance(content, str) else content
    if in_bucket(path):
        with _sentences(path):
            epath.Path(path).write_bytes(content)
        return
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: AnyPath, value: Any) -> None:
    """Writes a JSON file as `write_atomically` does."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def read_json(path: AnyPath) -> dict[str, Any]:
    """Reads a JSON object; ValueError names the file if it is missing or not a JSON object."""
    path = epath.Path(path)
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


@contextlib.contextmanager
def written_whole(path: AnyPath) -> Iterator[pathlib.Path]:
    """Yields a temporary name to write to, which is renamed to `path` when the block ends.

    For libraries that open a file by name; disks only. After an exception neither file exists.
    """
    path = pathlib.Path(path)
    temporary = temporary_name(path)
    with _sentences(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: AnyPath) -> Iterator[pathlib.Path]:
    """Yields an empty folder that becomes `path` when the block ends without an error.

    Raises:
      OSError: names `path`, which exists at the end and is not empty, or cannot be written.
    """
    path = pathlib.Path(path).absolute()
    temporary = temporary_name(path)
    with _sentences(path, temporary):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            temporary.rename(path)  # also onto an empty folder
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def replacing(path: AnyPath) -> Iterator[pathlib.Path]:
    """As `new_folder`, but replaces an earlier folder.

    The earlier folder can be read in the block. It is removed at the end and survives an error.
    """
    path = pathlib.Path(path).absolute()
    earlier = temporary_name(path)
    try:
        with new_folder(path) as folder:
            yield folder
            if path.exists():
                path.rename(earlier)
    except BaseException:
        if earlier.exists():
            earlier.rename(path)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def temporary_name(path: pathlib.Path) -> pathlib.Path:
    """A hidden name in the folder of `path` that no other process on any machine uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


@contextlib.contextmanager
def _sentences(path: AnyPath, temporary: AnyPath | None = None) -> Iterator[None]:
    """Turns an OSError about `path` or its temporary name into a sentence; others pass through."""
    path = os.fspath(path)
    temporary = path if temporary is None else os.fspath(temporary)
    try:
        yield
    except OSError as error:
        where = path if error.filename is None else str(error.filename)
        inside = f"{where}/".startswith((f"{path}/", f"{temporary}/"))
        if not inside and not path.startswith(f"{where}/"):
            raise
        reason = error.strerror
        if isinstance(error, FileExistsError):
            reason = "it is a file, expected a folder"
        sentence = f"{where} cannot be written: {reason}" if reason else str(error)
        # Keeps Python's class of the error (FileNotFoundError, …), on which callers depend.
        kind = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
        failure = kind(sentence.replace(temporary, path))
        failure.errno = error.errno
        raise failure from error


class AppendedLines:
    """Appends JSON lines to a file. On a disk each is written at once; a kill cuts at most one.

    The first line creates the file. `continued` is true if the file had content before.
    """

    def __init__(self, folder: AnyPath, name: str):
        self._path = epath.Path(folder) / name
        self.continued = self._path.exists() and self._path.read_bytes() != b""
        self._append = self._rewrite if in_bucket(folder) else self._write
        self._file: io.FileIO | None = None
        self._content, self._rewritten = b"", 0.0

    def append(self, values: dict[str, Any]) -> None:
        """Appends one line; an OSError names the file."""
        with _sentences(self._path):
            self._append(json.dumps(values).encode() + b"\n")

    def close(self) -> None:
        """Writes the remaining lines."""
        if self._file is not None:
            self._file.close()
        elif self._content:
            write_atomically(self._path, self._content)

    def _write(self, line: bytes) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "ab", buffering=0)
            if self.continued and not _ends_with_newline(self._path):
                self._file.write(b"\n")  # the line that a killed run was writing
        self._file.write(line)

    def _rewrite(self, line: bytes) -> None:
        if not self._content and self.continued:
            self._content = self._path.read_bytes()
        self._content += line
        if time.monotonic() - self._rewritten >= REWRITE_EVERY:
            write_atomically(self._path, self._content)
            self._rewritten = time.monotonic()


def _ends_with_newline(path: AnyPath) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, 2)
        return file.read() == b"\n"


def read_lines(folder: AnyPath, name: str) -> list[dict[str, Any]]:
    """The lines of a file, without those that a kill has cut.

    Raises:
      ValueError: there is no such file.
    """
    path = epath.Path(folder) / name
    if not path.exists():
        raise ValueError(f"{path} does not exist: no run has written a log there")
    lines = []
    for text in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines
