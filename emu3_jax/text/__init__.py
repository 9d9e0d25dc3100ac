"""Text tokenizers behind one protocol: SentencePiece, the released byte-pair ranks, bytes.

Ids are 0..size-1 and only text: no tokenizer here has special tokens, so the name of one inside a
caption is ordinary text.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from emu3_jax import shipped
from emu3_jax.text.bytes import ByteTokenizer
from emu3_jax.text.sentencepiece import SentencePieceTokenizer
from emu3_jax.text.stream import StreamDecoder
from emu3_jax.text.tiktoken import QwenTiktoken

__all__ = [
    "ByteTokenizer",
    "QwenTiktoken",
    "SentencePieceTokenizer",
    "StreamDecoder",
    "TextTokenizer",
    "load_text_tokenizer",
]


@runtime_checkable
class TextTokenizer(Protocol):
    """The interface of a text tokenizer: decode(encode(t)) == t for any text t.

    (With `QwenTiktoken` the right side is the NFC form of t, as released.)
    """

    size: int
    fingerprint: str

    def encode(self, text: str) -> list[int]:
        """Ids 0..size-1; ValueError for a lone surrogate."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text; ids outside 0..size-1 are skipped, invalid UTF-8 becomes U+FFFD."""

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 of the text; a single id may be part of a character."""


def load_text_tokenizer(path: str | pathlib.Path) -> TextTokenizer:
    """Loads "bytes", a `*.model` file (SentencePiece), a `*.tiktoken` file (ranks), or a name.

    "nano" and "styles" are shipped. Raises ValueError if the file is missing, of another kind or
    not readable as that kind.
    """
    name = str(path)
    if name == "bytes":
        return ByteTokenizer()
    path = shipped.text_tokenizer(path)
    name = str(path)
    if name.endswith(".model"):
        return SentencePieceTokenizer(path)
    if name.endswith(".tiktoken"):
        return QwenTiktoken(path)
    raise ValueError(
        f'The text tokenizer is {name!r}, expected "bytes", a SentencePiece file *.model '
        f"or a rank file *.tiktoken."
    )
