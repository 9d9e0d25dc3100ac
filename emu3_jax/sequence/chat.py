"""Chat documents: the released template for one image and one turn, and its one extension.

Released: BOS "You are a helpful assistant. USER: " block "{question}. ASSISTANT:" answer EOS, with
the literal period after the question and no space after the last colon. Extension: a turn may have
no block or several (images and videos, in order), and after an answer's EOS the next turn follows
as "USER: " blocks "{question}. ASSISTANT:" answer EOS. Only answers and their EOS are trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from emu3_jax.sequence.documents import Document, EndOfTurn, Image, Segment, Text, Video

SYSTEM = "You are a helpful assistant."
_USER = "USER: "
_ASSISTANT = ". ASSISTANT:"


@dataclasses.dataclass(frozen=True)
class Turn:
    """A question with its media, and its answer, verbatim (None: not given yet).

    ValueError for a question that contains ". ASSISTANT:", which is part of the template.
    """

    question: str
    answer: str | None = None
    media: tuple[Image | Video, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "media", tuple(self.media))
        if (self.question + _ASSISTANT).find(_ASSISTANT) != len(self.question):
            raise ValueError(
                f"The question {self.question!r} contains {_ASSISTANT!r}, which the chat template "
                "reserves."
            )
        for segment in self.media:
            if not isinstance(segment, Image | Video):
                raise ValueError(f"A turn has a {type(segment).__name__}, expected Image or Video.")


def chat_document(turns: Iterable[Turn], system: str = SYSTEM) -> Document:
    """The document of answered turns; ValueError for none, or for one without an answer."""
    turns = tuple(turns)
    if not turns:
        raise ValueError("A chat has no turn, expected at least one.")
    segments: list[Segment] = []
    for number, turn in enumerate(turns):
        if turn.answer is None:
            raise ValueError(f"Turn {number} of a chat has no answer.")
        segments += [*_question(turn, system if number == 0 else None), Text(turn.answer)]
        if number + 1 < len(turns):
            segments.append(EndOfTurn())
    return Document(tuple(segments))


def prompt_segments(turns: Iterable[Turn], system: str = SYSTEM) -> tuple[Segment, ...]:
    """Segments up to the answer of the last turn; that turn must have none."""
    *before, last = tuple(turns) or (Turn("", ""),)
    if last.answer is not None:
        raise ValueError("A chat prompt ends with a turn without an answer; this one does not.")
    segments: tuple[Segment, ...] = ()
    if before:
        segments = (*chat_document(before, system).segments, EndOfTurn())
    return (*segments, *_question(last, None if before else system))


def _question(turn: Turn, system: str | None) -> list[Segment]:
    opening = _USER if system is None else f"{system} {_USER}"
    closing = turn.question + _ASSISTANT
    if not turn.media:
        return [Text(opening + closing, loss=False)]
    media = [dataclasses.replace(segment, loss=False) for segment in turn.media]
    return [Text(opening, loss=False), *media, Text(closing, loss=False)]


def parse_chat(document: Document, system: str = SYSTEM) -> tuple[Turn, ...]:
    """The turns of a chat document; ValueError names a turn that does not follow the template."""
    groups: list[list[Segment]] = [[]]
    for segment in document.content().segments:
        if isinstance(segment, EndOfTurn):
            groups.append([])
        else:
            groups[-1].append(segment)
    return tuple(
        _parse_turn(group, number, system if number == 0 else None)
        for number, group in enumerate(groups)
    )


def _parse_turn(group: list[Segment], number: int, system: str | None) -> Turn:
    opening = _USER if system is None else f"{system} {_USER}"
    texts = [segment for segment in group if isinstance(segment, Text)]
    media = [segment for segment in group if not isinstance(segment, Text)]
    if not texts or group[0] is not texts[0] or not texts[0].text.startswith(opening):
        raise ValueError(f"Turn {number} of a chat does not begin with {opening!r}.")
    if media:
        if len(texts) != 2 or texts[0].text != opening or group[-1] is not texts[1]:
            raise ValueError(
                f"Turn {number} of a chat has text between or before its media; "
                f"expected {opening!r}, images and videos, then one text."
            )
        rest = texts[1].text
    else:
        rest = texts[0].text[len(opening) :]
    question, marker, answer = rest.partition(_ASSISTANT)
    if not marker:
        raise ValueError(f"Turn {number} of a chat has no {_ASSISTANT!r} after its question.")
    return Turn(question, answer, tuple(media))
