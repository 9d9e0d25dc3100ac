"""Decoding of text while its ids arrive: whole characters only."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emu3_jax.text import TextTokenizer


class StreamDecoder:
    """Decodes ids a few at a time; the pieces together are `tokenizer.decode` of all ids.

    An id may end inside a character. An incomplete character is held back until the ids that
    complete it arrive, or until `finish`, which turns it into U+FFFD.
    """

    def __init__(self, tokenizer: TextTokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, ids: Iterable[int]) -> str:
        """The whole characters that these ids complete, possibly none."""
        return self._utf8.decode(self._tokenizer.decode_bytes(ids))

    def finish(self) -> str:
        """The text that was held back."""
        return self._utf8.decode(b"", final=True)
