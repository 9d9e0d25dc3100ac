"""Where the elements of a list in a json file stand, without holding the file in memory."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from emu3_jax.data.sources.source import SourceError
from emu3_jax.files import MAX_TEXT_BYTES

# Bytes of a json file that are read at once.
CHUNK = 1 << 20
_NOT_BLANK = re.compile(r"[^ \t\r\n]")
_BYTE_ORDER_MARK = "\xef\xbb\xbf"


def elements(file: BinaryIO, path: Path) -> Iterator[tuple[int, int]]:
    """(first byte, number of bytes) of each element of the list in a json file.

    Raises SourceError for a file that is no list or is damaged, since no row behind the damage can
    be found.
    """
    window = _Window(file)
    expected = "a list of rows"
    try:
        window.take("[")
        expected = "a row, or the end of the list"
        if window.peek() == "]":
            return
        while True:
            yield window.element()
            expected = "a comma or the end of the list"
            if window.peek() == "]":
                return
            window.take(",")
            expected = "a row"
    except (ValueError, RecursionError) as error:
        at = window.start + window.at
        raise SourceError(
            f"{path}: is not JSON of the kind [row, row, …]: at byte {at} expected {expected} "
            f"({error})"
        ) from error


class _Window:
    """What is in sight of a json file, as text in which every byte is one character.

    JSON's own characters are ASCII, so positions in this text are positions in the file.
    """

    def __init__(self, file: BinaryIO):
        self._file, self._decoder = file, json.JSONDecoder()
        self.text, self.at, self.start = "", 0, 0
        self._grow()
        if self.text.startswith(_BYTE_ORDER_MARK):
            self.at = len(_BYTE_ORDER_MARK)

    def _grow(self) -> bool:
        """Forgets what was taken, reads at least as much as is left; False at the file's end."""
        self.start += self.at
        self.text, self.at = self.text[self.at :], 0
        more = self._file.read(max(CHUNK, len(self.text)))
        self.text += more.decode("latin-1")
        return bool(more)

    def peek(self) -> str:
        """The next character that is not blank; "" at the end of the file."""
        while not (found := _NOT_BLANK.search(self.text, self.at)):
            self.at = len(self.text)
            if not self._grow():
                return ""
        self.at = found.start()
        return self.text[self.at]

    def take(self, character: str) -> None:
        """Passes over the next character that is not blank; ValueError if it is another."""
        if (found := self.peek()) != character:
            raise ValueError(f"found {found!r}" if found else "the file ends")
        self.at += 1

    def element(self) -> tuple[int, int]:
        """Passes over a value; returns its first byte and its number of bytes."""
        self.peek()
        while True:
            failure, stop = ValueError("the file ends"), len(self.text)
            try:
                _, stop = self._decoder.raw_decode(self.text, self.at)
            except ValueError as error:
                failure = error
            if stop < len(self.text):  # a number at the end of what is in sight may go on
                break
            if len(self.text) - self.at > MAX_TEXT_BYTES:
                raise ValueError(f"a row of more than {MAX_TEXT_BYTES} bytes")
            if not self._grow():
                raise failure
        span = self.start + self.at, stop - self.at
        self.at = stop
        return span
