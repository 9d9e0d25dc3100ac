"""Files and folders that are whole or not there, and logs that grow, on a disk or in a bucket.

A file is written under a temporary name beside its own and then renamed: a process that is killed
leaves the earlier file as it was. An object in a bucket (gs://…) appears whole by itself. What
cannot be written is an OSError whose sentence names the file and not its temporary name.
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
from typing import Any

from etils import epath

AnyPath = str | os.PathLike[str]

# An object in a bucket cannot grow, it is written anew; not more often than this, in seconds.
REWRITE_EVERY = 60.0


def in_bucket(path: AnyPath) -> bool:
    """Whether `path` is a URL (gs://bucket/…) rather than a path on a disk."""
    return "://" in os.fspath(path)


def write_atomically(path: AnyPath, content: bytes | str) -> None:
    """Writes a file, whole or not at all; text as UTF-8. Missing folders are made.

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
    """Reads a JSON object; ValueError names the file if it is missing or something else."""
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
    """Gives a temporary name, to be written to, that is renamed to `path` when the block ends.

    For libraries that write to a name themselves; disks only. An exception leaves neither file.
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
    """Gives an empty folder that becomes `path` when the block ends without an error.

    Raises:
      OSError: names `path`, which at the end is there and not empty, or cannot be written.
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
    """As `new_folder`, in place of an earlier one.

    The earlier folder can be read in the block, is removed at the end, and survives an error.
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
    """A hidden name beside `path` that no other process takes, on whatever machine it runs."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


@contextlib.contextmanager
def _sentences(path: AnyPath, temporary: AnyPath | None = None) -> Iterator[None]:
    """An OSError about `path` or its temporary name becomes a sentence; one about others stays."""
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
        # Of the class that python has for it (FileNotFoundError, …), by which callers tell it.
        kind = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
        failure = kind(sentence.replace(temporary, path))
        failure.errno = error.errno
        raise failure from error


class AppendedLines:
    """Appends JSON lines to a file. On a disk each is there at once; a kill cuts one at most.

    The file is made with the first line. `continued` tells whether it held something before.
    """

    def __init__(self, folder: AnyPath, name: str):
        self._path = epath.Path(folder) / name
        self.continued = self._path.exists() and self._path.read_bytes() != b""
        self._append = self._rewrite if in_bucket(folder) else self._write
        self._file: io.FileIO | None = None
        self._content, self._rewritten = b"", 0.0

    def append(self, values: dict[str, Any]) -> None:
        """Adds one line; an OSError names the file."""
        with _sentences(self._path):
            self._append(json.dumps(values).encode() + b"\n")

    def close(self) -> None:
        """Writes what is left."""
        if self._file is not None:
            self._file.close()
        elif self._content:
            write_atomically(self._path, self._content)

    def _write(self, line: bytes) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "ab", buffering=0)
            if self.continued and not _ends_with_newline(self._path):
                self._file.write(b"\n")  # the line that was being written when a run was killed
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
    """The lines of a file, without any that a kill has cut.

    Raises:
      ValueError: there is no such file.
    """
    path = epath.Path(folder) / name
    if not path.exists():
        raise ValueError(f"{path} does not exist: no run has logged there")
    lines = []
    for text in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines
