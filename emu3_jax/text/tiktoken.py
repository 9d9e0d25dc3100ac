"""The text half of the released vocabulary: byte-pair ranks of Qwen, read from a rank file."""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import pathlib
import unicodedata
from collections.abc import Iterable

import tiktoken

# How text is cut before merging, in order: English contractions; an optional single character that
# is not a line break, letter or digit, then letters; one digit; an optional space, then a run of
# neither space, letter nor digit, then line breaks; space that ends in line breaks; space that is
# not followed by a non-space; space.
SPLIT_PATTERN = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


@functools.cache
def _read_ranks(path: str) -> tuple[dict[bytes, int], str]:
    data = pathlib.Path(path).read_bytes()
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(
                f"Line {number} of the rank file {path} is not a base64 token and its rank."
            ) from None
    if sorted(ranks.values()) != list(range(len(ranks))) or not ranks:
        raise ValueError(f"The ranks in {path} are not the numbers 0..{len(ranks) - 1}, each once.")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(f"The rank file {path} has no token for the byte {missing[0]}.")
    return ranks, hashlib.sha256(data).hexdigest()[:12]


class QwenTiktoken:
    """Byte-pair encoding with the released ranks (151,643 of them in `emu3.tiktoken`).

    Text is brought to Unicode form NFC first, as in the released tokenizer; unlike there, the name
    of a special token inside text stays text. `path`: a file of lines "base64-token rank".
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = str(path)
        if not pathlib.Path(self.path).is_file():
            raise ValueError(f"There is no rank file {self.path}.")
        ranks, self.fingerprint = _read_ranks(self.path)
        self.size = len(ranks)
        self._encoding = tiktoken.Encoding(
            "qwen", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={}
        )

    def __reduce__(self):
        return type(self), (self.path,)

    def encode(self, text: str) -> list[int]:
        """Ids 0..size-1 of the NFC form; ValueError for a lone surrogate, which is no text."""
        text.encode("utf-8")  # tiktoken would silently replace a lone surrogate
        return self._encoding.encode_ordinary(unicodedata.normalize("NFC", text))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; ids outside 0..size-1 are skipped, invalid UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The same as UTF-8, valid or not."""
        return self._encoding.decode_bytes([int(i) for i in ids if 0 <= i < self.size])
