"""The text of an item from the value that a corpus stores: the same rules for every source."""

import codecs
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from emu3_jax.data.sources.source import SourceError

# Entries of a row or of a json member that hold the caption; the first that is not empty is used.
CAPTION_KEYS = ("caption", "captions", "text", "title")
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def caption_text(value: Any) -> str:
    """The text of a caption; "" if the value says that there is none.

    None, NaN (a missing cell of a table), blank text and an empty list are no caption. Of several
    captions, the first that is not empty is used. Bytes are UTF-8, or UTF-16 with a byte order
    mark. The mark is removed, CR LF and CR become LF, and empty lines at both ends are dropped.
    Raises SourceError for anything else.
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return next(filter(None, map(caption_text, value)), "")
    if is_missing(value):
        return ""
    if isinstance(value, bytes):
        value = _decoded(value)
    if not isinstance(value, str):
        raise SourceError(f"a caption must be a string, found {value!r}")
    text = value.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").strip("\n")
    return text if text.strip() else ""


def caption_of(entries: Mapping[str, Any], keys: tuple[str, ...] = CAPTION_KEYS) -> str:
    """The first caption among the entries called `keys`; "" if there is none."""
    return next(filter(None, (caption_text(entries.get(key)) for key in keys)), "")


def is_missing(value: Any) -> bool:
    """Whether the value stands for no value: None or NaN."""
    return value is None or isinstance(value, float | np.floating) and math.isnan(value)


def _decoded(content: bytes) -> str:
    encoding = "utf-16" if content.startswith(UTF16_MARKS) else "utf-8"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise SourceError(f"a caption must be {encoding.upper()} text ({error})") from error
