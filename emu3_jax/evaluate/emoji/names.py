"""Parses the caption of an emoji: who or what it is, tones of skin, what is done, the style."""

import dataclasses
import re
import unicodedata

from emu3_jax.data.emoji_prompts import PERSONS
from emu3_jax.data.emoji_styles import DEFAULT, split_style
from emu3_jax.data.fluent_emoji import TONES

PARTS = ("tone", "person", "activity")
_TONE = re.compile(r"\b(medium[ -]light|medium[ -]dark|light|medium|dark) skin tones?\b")


@dataclasses.dataclass(frozen=True)
class ParsedCaption:
    """A parsed caption.

    Attributes:
      person: the caption without tones, style and punctuation; may be empty.
      tones: indices into TONES, in the order of the caption; a couple has two.
      style: the style that it names, or that of captions which name none.
    """

    person: str
    tones: tuple[int, ...]
    style: str = DEFAULT


def normalise(text: str) -> str:
    """Applies NFKC, lower case, straight quotes, single spaces; keeps only - ' inside words."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    text = re.sub(r"(?<!\w)['-]|['-](?!\w)|[^\w'\s-]", " ", text)
    return " ".join(text.split())


def parse_caption(text: str) -> ParsedCaption:
    """Parses a caption: "woman: dark skin tone, blond hair" → "woman blond hair", (4,)."""
    text, style = split_style(text)
    text = normalise(text)
    tones = tuple(TONES.index(t.replace(" ", "-")) for t in _TONE.findall(text))
    return ParsedCaption(" ".join(_TONE.sub(" ", text).split()), tones, style)


def stated_parts(text: str) -> dict[str, str]:
    """Returns those of PARTS that a caption of one person states; nothing of a caption of several.

    "woman: dark skin tone, blond hair" → tone "dark", person "woman", activity "blond hair". The
    activity is all other words: what is done, worn, or, without a person, shown ("waving hand").
    """
    parsed = parse_caption(text)
    words = parsed.person.split()
    persons = [word for word in words if word in PERSONS]
    if len(persons) > 1 or len(parsed.tones) > 1:
        return {}
    activity = " ".join(word for word in words if word not in PERSONS)
    stated = zip(PARTS, ([TONES[t] for t in parsed.tones], persons, [activity]), strict=True)
    return {part: values[0] for part, values in stated if values and values[0]}
