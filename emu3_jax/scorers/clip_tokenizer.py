"""CLIP's text tokenizer, from the user's files, run by the package `tokenizers`.

Byte pairs over lower-case words; the last pair of a word ends in "</w>". Ids equal those of
transformers' CLIPTokenizer. OpenAI's and OpenCLIP's own code also repairs broken Unicode (ftfy) and
resolves HTML entities.
"""

import hashlib
import os
import pathlib
import types
from collections.abc import Sequence

import numpy as np

from emu3_jax.foreign import failures_as, optional

TOKENIZER_FILE = "tokenizer.json"
VOCABULARY_FILE, MERGES_FILE = "vocab.json", "merges.txt"
REQUIREMENTS = "requirements-scorers.txt"
# The marks before and after a text: of OpenAI's files and transformers, and of OpenCLIP.
MARKS = (("<|startoftext|>", "<|endoftext|>"), ("<start_of_text>", "<end_of_text>"))
SUFFIX = "</w>"
# Words of CLIP (simple_tokenizer.py): marks, English contractions, letters, one digit, other signs.
WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class _InputError(ValueError):
    """A file or a text that the package cannot read."""


class ClipTokenizer:
    """Captions to rows of ids.

    Attributes:
      size: number of ids.
      start, end: ids of the marks around a text.
      fingerprint: hash of the files.
    """

    def __init__(self, path: str | os.PathLike):
        """Reads tokenizer.json, or a folder with it or with vocab.json and merges.txt.

        Raises:
          ValueError: no such file, or one that is not a tokenizer with CLIP's marks.
          MissingPackageError: the package `tokenizers` is missing.
        """
        package = optional("tokenizers", "CLIP's text tokenizer", f"-r {REQUIREMENTS}")
        files = _files(pathlib.Path(path))
        with failures_as(lambda why: _InputError(f"{files[0]} is not a text tokenizer: {why}")):
            self._tokenizer = _read(files, package)
        vocabulary = self._tokenizer.get_vocab()
        found = [marks for marks in MARKS if set(marks) <= vocabulary.keys()]
        if not found:
            raise ValueError(f"{files[0]} is not CLIP's: it has no {' and '.join(MARKS[0])}")
        self.start, self.end = (vocabulary[mark] for mark in found[0])
        self.size = max(vocabulary.values()) + 1
        content = b"".join(file.read_bytes() for file in files)
        self.fingerprint = hashlib.sha256(content).hexdigest()[:12]

    def rows(self, texts: Sequence[str], context: int, pad: int = 0) -> np.ndarray:
        """int32 [N, context]: mark, text, mark, then `pad`.

        A text that does not fit is cut before its last mark, as in all of CLIP's code.

        Raises:
          ValueError: something that is not text.
        """
        rows = np.full((len(texts), context), pad, np.int32)
        for row, text in zip(rows, texts, strict=True):
            with failures_as(lambda why, text=text: _InputError(f"{text!r} is no caption: {why}")):
                ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            ids = [self.start, *ids[: context - 2], self.end]
            row[: len(ids)] = ids
        return rows


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    if path.is_file():
        return [path]
    for names in ((TOKENIZER_FILE,), (VOCABULARY_FILE, MERGES_FILE)):
        files = [path / name for name in names]
        if all(file.is_file() for file in files):
            return files
    raise ValueError(
        f"{path} has no text tokenizer: expected {TOKENIZER_FILE}, or {VOCABULARY_FILE} and "
        f"{MERGES_FILE}"
    )


def _read(files: Sequence[pathlib.Path], package: types.ModuleType):
    Regex, Tokenizer, models = package.Regex, package.Tokenizer, package.models
    normalizers, pre_tokenizers = package.normalizers, package.pre_tokenizers
    if len(files) == 1:
        tokenizer = Tokenizer.from_file(os.fspath(files[0]))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    vocabulary, merges = models.BPE.read_file(*map(os.fspath, files))
    end = MARKS[0][1]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=end, end_of_word_suffix=SUFFIX, fuse_unk=False)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens([mark for mark in MARKS[0] if mark in vocabulary])
    return tokenizer
