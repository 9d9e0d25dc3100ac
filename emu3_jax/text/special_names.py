"""Names of the released control tokens inside text.

Elsewhere in this package such a name is ordinary text. The official code reads it as the control
token, so that a user's text can end a sequence or fake an image. This module does the same, for
comparisons with the official code.
"""

import functools
import itertools
import re
import unicodedata
from collections.abc import Iterable

from emu3_jax.text import TextTokenizer

# Released tokenizer files: chat marks, 205 extra marks, image marks, 32,768 codes, without a gap.
FIRST_ID = 151643
NAMES = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|extra_{i}|>" for i in range(205)),
    "<|image token|>",
    "<|image start|>",
    "<|image end|>",
    *(f"<|visual token {code:06d}|>" for code in range(32768)),
)
_SHAPE = re.compile(r"(<\|[a-z_ ]+\d*\|>)")


@functools.cache
def released_ids() -> dict[str, int]:
    """Name → id of the released vocabulary."""
    return {name: FIRST_ID + i for i, name in enumerate(NAMES)}


def encode(text: str, tokenizer: TextTokenizer) -> list[int]:
    """Ids of text; names of control tokens become these tokens."""
    ids, plain = [], ""
    for part in _SHAPE.split(unicodedata.normalize("NFC", text)):
        if part in released_ids():
            ids += [*tokenizer.encode(plain), released_ids()[part]]
            plain = ""
        else:
            plain += part
    return ids + tokenizer.encode(plain)


def decode(ids: Iterable[int], tokenizer: TextTokenizer) -> str:
    """Text of ids, with the names of control tokens, which a tokenizer alone would skip.

    Ids outside the released vocabulary are skipped.
    """
    parts = []
    for named, group in itertools.groupby(ids, lambda i: FIRST_ID <= i < FIRST_ID + len(NAMES)):
        if named:
            parts += [NAMES[i - FIRST_ID].encode() for i in group]
        else:
            parts.append(tokenizer.decode_bytes(group))
    return b"".join(parts).decode("utf-8", errors="replace")
