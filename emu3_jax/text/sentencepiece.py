"""Lossless SentencePiece models: every Unicode text survives encoding and decoding.

The model is a byte-pair model with byte fallback, identity normalisation, no dummy prefix and no
collapsing of spaces. The one character that the model would change is encoded as bytes.
"""

from __future__ import annotations

import collections
import hashlib
import io
import pathlib
import re
from collections.abc import Iterable

import sentencepiece
from etils import epath

from emu3_jax.files import write_atomically
from emu3_jax.foreign import failures_as

# SentencePiece writes a space as U+2581 inside its pieces, so a real U+2581 would come back as a
# space. It is encoded as its UTF-8 bytes instead.
_SPACE = "\u2581"

# Every model has 256 bytes and the unknown piece that SentencePiece requires (never produced).
_FIXED_PIECES = 257
# At most this share of the other pieces are single characters, the commonest first, and no more
# characters than make up _CHARACTER_COVERAGE of the text. A rarer one costs its UTF-8 bytes. (With
# 1,024 pieces on the embedded corpus, 0.3 is within 1 % of the fewest tokens, which 0.2 gives, and
# needs 11 % fewer for the Chinese captions.) If a small corpus gives too few pieces, the next
# larger share is tried, at last with every character.
_CHARACTER_SHARES = (0.3, 0.5, 0.75, 1.0)
_CHARACTER_COVERAGE = 0.9998


class SentencePieceTokenizer:
    """A lossless SentencePiece model, read from `path` (written by `train`).

    Ids are the model's own piece numbers, 0..size-1. Raises ValueError if the file is missing, is
    not a SentencePiece model, or was trained with options that change text.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = str(path)
        if not epath.Path(self.path).is_file():
            raise ValueError(f"There is no SentencePiece model {self.path}.")
        data = epath.Path(self.path).read_bytes()
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=data)
        except RuntimeError:
            raise ValueError(f"{self.path} is not a SentencePiece model.") from None
        self.fingerprint = hashlib.sha256(data).hexdigest()[:12]
        self.size = self._model.get_piece_size()
        byte_ids = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        self._space_ids = [byte_ids[byte] for byte in _SPACE.encode("utf-8")]
        self._pieces = [self._bytes_of(index) for index in range(self.size)]
        probe = "  a\t b\u2581\n\n\u3000\ufb01 "
        if not all(map(self._model.is_byte, byte_ids)) or self.decode(self.encode(probe)) != probe:
            raise ValueError(
                f"The SentencePiece model {self.path} changes text; expected one trained with byte "
                f"fallback, identity normalisation, no dummy prefix and all spaces kept."
            )

    def __reduce__(self):
        return type(self), (self.path,)

    def _bytes_of(self, index: int) -> bytes:
        piece = self._model.id_to_piece(index)
        if self._model.is_byte(index):
            return bytes([int(piece[3:5], 16)])
        if self._model.is_unknown(index) or self._model.is_control(index):
            return b""
        return piece.replace(_SPACE, " ").encode("utf-8")

    def encode(self, text: str) -> list[int]:
        """Ids 0..size-1; ValueError for a lone surrogate and for what SentencePiece refuses."""
        text.encode("utf-8")  # SentencePiece would fail with an obscure error
        first, *others = text.split(_SPACE)
        with failures_as(lambda why: ValueError(f"SentencePiece cannot encode the text ({why})")):
            ids = self._model.encode(first)
            for part in others:
                ids += [*self._space_ids, *self._model.encode(part)]
            return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; ids outside 0..size-1 are skipped, invalid UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the ids, valid UTF-8 or not."""
        return b"".join(self._pieces[i] for i in ids if 0 <= i < self.size)


def train(sentences: Iterable[str], size: int, path: str | pathlib.Path) -> int:
    """Trains a model of `size` pieces and writes it to `path` atomically; returns its size.

    It is smaller only if the corpus has too few different pieces: then it is the largest possible.

    Byte-pair rather than unigram: on the embedded corpus at 1,024 pieces it needs 1 % fewer tokens
    and trains ten times faster. One thread and a fixed order, so equal sentences give an equal
    file. Digits stay single, as in the released vocabulary, so that a size such as "64*64" always
    has the same pieces.

    Raises ValueError for a corpus without text, and for a size that is too small.
    """
    if size < _FIXED_PIECES + 2:
        raise ValueError(
            f"The size is {size}, expected at least {_FIXED_PIECES + 2}: 256 are bytes."
        )
    clean = (text.encode("utf-8", errors="ignore").decode() for text in sentences)  # surrogates
    lines = [line for text in clean for line in text.splitlines() if line.strip()]
    counts = collections.Counter("".join(lines))
    for reserved in (_SPACE, "\0", "\t", "\u2585"):  # the last two: only in training
        counts.pop(reserved, None)
    if not counts.keys() - {" "}:
        raise ValueError("The corpus has no text to train a tokenizer on.")
    while isinstance(model := _trained(lines, counts, size), int):
        size = model
    write_atomically(path, model)
    return size


def _trained(lines: list[str], counts: collections.Counter, size: int) -> bytes | int:
    """The model with the smallest share of characters that gives enough pieces, or as `_train`."""
    for share in _CHARACTER_SHARES:
        characters = _common_characters(counts, int((size - _FIXED_PIECES) * share), share < 1)
        model = _train(_cut(lines, characters), size)
        if isinstance(model, bytes):
            break
    return model


def _common_characters(counts: collections.Counter, most: int, rare_ones_fall_back: bool) -> str:
    """The characters with a piece of their own: the space and the commonest others."""
    wanted = _CHARACTER_COVERAGE * counts.total() if rare_ones_fall_back else float("inf")
    kept, covered = [" "], counts[" "]
    others = ((character, n) for character, n in counts.items() if character != " ")
    for character, count in sorted(others, key=lambda item: (-item[1], item[0])):
        if len(kept) >= max(2, most) or covered >= wanted:
            break
        kept.append(character)
        covered += count
    return "".join(kept)


def _cut(lines: list[str], characters: str) -> list[str]:
    """The lines, split at all characters but these."""
    other = re.compile("[^" + re.escape(characters) + "]+")
    return [part for line in lines for part in other.split(line) if part.strip()]


def _train(parts: list[str], size: int) -> bytes | int:
    """The model, or the largest size that these parts allow if `size` is larger."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(parts),
            model_writer=model,
            vocab_size=size,
            model_type="bpe",
            byte_fallback=True,
            character_coverage=1.0,
            required_chars=_SPACE,  # without a piece, a space would become the bytes of U+2581
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,
            max_sentence_length=max([10, *(len(part.encode("utf-8")) for part in parts)]),
            minloglevel=2,
        )
    except RuntimeError as error:
        if largest := re.search(r"value <= (\d+)", str(error)):
            return int(largest[1])
        raise ValueError(f"SentencePiece cannot train on this corpus: {error}") from None
    return model.getvalue()
