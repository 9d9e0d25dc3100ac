"""The text half of the released vocabulary: byte-pair ranks of Qwen, read from a rank file."""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
import pathlib
import unicodedata
from collections.abc import Iterable

import tiktoken
from etils import epath

from emu3_jax.foreign import failures_as
from emu3_jax.vocab import released

# How text is split before merging, in order: English contractions; an optional character that
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
def _read_ranks(path: str) -> tuple[dict[bytes, int], bytes]:
    """(token → rank, the rank file), from a rank file or a JSON vocabulary."""
    data = epath.Path(path).read_bytes()
    ranks = _ranks_of_json(data, path) if path.endswith(".json") else _ranks_of_lines(data, path)
    if sorted(ranks.values()) != list(range(len(ranks))) or not ranks:
        raise ValueError(f"The ranks in {path} are not the numbers 0..{len(ranks) - 1}, each once.")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(f"The rank file {path} has no token for the byte {missing[0]}.")
    return ranks, _rank_file(ranks) if path.endswith(".json") else data


def _ranks_of_lines(data: bytes, path: str) -> dict[bytes, int]:
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
    return ranks


def _ranks_of_json(data: bytes, path: str) -> dict[bytes, int]:
    """Ranks of transformers' vocab.json or tokenizer.json, where a character represents a byte."""
    byte_of = {character: byte for byte, character in enumerate(_characters_of_bytes())}
    try:
        stored = json.loads(data)
        model = stored.get("model")  # may also be a token of vocab.json
        vocabulary = model["vocab"] if isinstance(model, dict) else stored
        return {
            bytes(byte_of[character] for character in token): rank
            for token, rank in vocabulary.items()
            if rank < released().text_size  # the names of control tokens follow
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is not a vocabulary of byte-level pairs.") from None


def _characters_of_bytes() -> list[str]:
    """GPT-2's character of each byte: itself if it can be printed, else the next from U+0100 on."""
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printed else next(others)) for byte in range(256)]


def _rank_file(ranks: dict[bytes, int]) -> bytes:
    lines = (
        b"%s %d\n" % (base64.b64encode(token), rank)
        for token, rank in sorted(ranks.items(), key=lambda item: item[1])
    )
    return b"".join(lines)


class QwenTiktoken:
    """Byte-pair encoding with the released ranks (151,643 of them in `emu3.tiktoken`).

    Text is first normalised to Unicode form NFC, as in the released tokenizer. Unlike there, the
    name of a special token inside text stays text.

    `path`: a file of lines "base64-token rank", or vocab.json or tokenizer.json of an -hf
    conversion, which have the same tokens and ranks. (Only these are read from it: transformers
    splits text in another way before merging, and without NFC.)
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = str(path)
        if not epath.Path(self.path).is_file():
            raise ValueError(f"There is no rank file {self.path}.")
        ranks, self.rank_file = _read_ranks(self.path)
        self.fingerprint = hashlib.sha256(self.rank_file).hexdigest()[:12]
        self.size = len(ranks)
        self._encoding = tiktoken.Encoding(
            "qwen", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={}
        )

    def __reduce__(self):
        return type(self), (self.path,)

    def encode(self, text: str) -> list[int]:
        """Ids 0..size-1 of the NFC form.

        ValueError for a lone surrogate, which is not text, and for text that tiktoken panics at:
        a million spaces in a row are too many for its search.
        """
        text.encode("utf-8")  # tiktoken would silently replace a lone surrogate
        normal = unicodedata.normalize("NFC", text)
        with failures_as(lambda why: ValueError(f"tiktoken cannot encode the text ({why})")):
            return self._encoding.encode_ordinary(normal)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; ids outside 0..size-1 are skipped, invalid UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the ids, valid UTF-8 or not."""
        return self._encoding.decode_bytes([int(i) for i in ids if 0 <= i < self.size])
