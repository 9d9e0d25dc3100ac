"""Files of JSON lines that grow: the logs of a run directory, on a disk or in a bucket."""

import io
import json
import os
import time
from typing import Any

from etils import epath

# An object in a bucket cannot grow, it is written anew; not more often than this, in seconds.
REWRITE_EVERY = 60.0


class AppendedLines:
    """Appends lines to a file. On a disk each line is there at once; a kill cuts one at most.

    The file is made with the first line. `continued` tells whether it held something before.
    """

    def __init__(self, folder: str | os.PathLike, name: str):
        self._path = epath.Path(folder) / name
        self.continued = self._path.exists() and self._path.read_bytes() != b""
        self._append = self._rewrite if "://" in os.fspath(folder) else self._write
        self._file: io.FileIO | None = None
        self._content, self._rewritten = b"", 0.0

    def append(self, values: dict[str, Any]) -> None:
        """Adds one line. OSError names the file."""
        try:
            self._append(json.dumps(values).encode() + b"\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(self._path)) from error

    def close(self) -> None:
        """Writes what is left."""
        if self._file is not None:
            self._file.close()
        elif self._content:
            self._path.write_bytes(self._content)

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
            self._path.write_bytes(self._content)
            self._rewritten = time.monotonic()


def _ends_with_newline(path: os.PathLike) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, 2)
        return file.read() == b"\n"


def read_lines(folder: str | os.PathLike, name: str) -> list[dict[str, Any]]:
    """The lines of a file, without any that a kill has cut.

    Raises ValueError if there is no such file.
    """
    path = epath.Path(folder) / name
    if not path.exists():
        raise ValueError(f"{path} does not exist: no run has logged there")
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
