"""Text as UTF-8 bytes: 256 ids, nothing to train. For tests and byte-level models."""

from __future__ import annotations

from collections.abc import Iterable


class ByteTokenizer:
    """Every byte of the UTF-8 text is one id."""

    size = 256
    fingerprint = "bytes"

    def encode(self, text: str) -> list[int]:
        """Ids 0..255; ValueError for a lone surrogate, which is not Unicode text."""
        return list(text.encode("utf-8"))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; ids outside 0..255 are skipped, invalid UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the ids, valid UTF-8 or not."""
        return bytes(i for i in ids if 0 <= i < 256)
