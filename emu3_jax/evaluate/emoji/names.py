"""Parses the caption of an emoji: who or what it is, and which tones of skin."""

import dataclasses
import re
import unicodedata

from emu3_jax.data.fluent_emoji import TONES

_TONE = re.compile(r"\b(medium[ -]light|medium[ -]dark|light|medium|dark) skin tones?\b")


@dataclasses.dataclass(frozen=True)
class ParsedCaption:
    """A parsed caption.

    Attributes:
      person: the caption without tones and punctuation; may be empty.
      tones: indices into TONES, in the order of the caption; a couple has two.
    """

    person: str
    tones: tuple[int, ...]


def normalise(text: str) -> str:
    """Applies NFKC, lower case, straight quotes, single spaces; keeps only - ' inside words."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    text = re.sub(r"(?<!\w)['-]|['-](?!\w)|[^\w'\s-]", " ", text)
    return " ".join(text.split())


def parse_caption(text: str) -> ParsedCaption:
    """Parses a caption: "woman: dark skin tone, blond hair" → "woman blond hair", (4,)."""
    text = normalise(text)
    tones = tuple(TONES.index(t.replace(" ", "-")) for t in _TONE.findall(text))
    return ParsedCaption(" ".join(_TONE.sub(" ", text).split()), tones)
