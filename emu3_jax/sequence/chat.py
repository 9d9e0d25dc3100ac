"""Chat documents: the released template for one image and one turn, and its one extension.

Released: BOS "You are a helpful assistant. USER: " block "{question}. ASSISTANT:" answer EOS, with
the literal period after the question and no space after the last colon. Extension: a turn may have
no block or several (images and videos, in order), before the question or within it, and an answer
may have blocks too; after an answer's EOS the next turn follows as "USER: " blocks "{question}.
ASSISTANT:" answer EOS. Only answers, their blocks among them, and their EOS are trained on.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

from emu3_jax.sequence.documents import Document, EndOfTurn, Image, Segment, Text, Video

SYSTEM = "You are a helpful assistant."
"""What the released template begins with."""
_USER = "USER: "
_ASSISTANT = ". ASSISTANT:"

Part = str | Image | Video


@dataclasses.dataclass(frozen=True)
class Turn:
    """A question with its media, and its answer.

    Question and answer are verbatim text, or a tuple of texts and media in reading order, which is
    then kept in its shortest form: adjacent texts are joined, media at its begin belong to `media`,
    and text alone is a str.

    ValueError for a question that contains ". ASSISTANT:", which is part of the template.

    Attributes:
      question: what is asked.
      answer: what is answered; None: not given yet.
      media: images and clips that stand before the question.
    """

    question: str | tuple[Part, ...]
    answer: str | tuple[Part, ...] | None = None
    media: tuple[Image | Video, ...] = ()

    def __post_init__(self):
        asked = _joined((*self.media, *_parts(self.question)))
        media = tuple(itertools.takewhile(lambda part: not isinstance(part, str), asked))
        object.__setattr__(self, "media", media)
        object.__setattr__(self, "question", _plain(asked[len(media) :]))
        if self.answer is not None:
            object.__setattr__(self, "answer", _plain(_joined(_parts(self.answer))))
        for text in asked:
            if isinstance(text, str) and _ASSISTANT in text:
                raise ValueError(
                    f"The question {text!r} contains {_ASSISTANT!r}, which the chat template "
                    "reserves."
                )

    def asked(self) -> tuple[Part, ...]:
        """The media and the question, in reading order."""
        return (*self.media, *_parts(self.question))

    def answered(self) -> tuple[Part, ...]:
        """The parts of the answer, in reading order."""
        return _parts(self.answer)


def _parts(value: str | tuple[Part, ...]) -> tuple[Part, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _joined(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The same with adjacent texts joined and empty ones dropped."""
    joined: list[Part] = []
    for part in parts:
        if not isinstance(part, Part):
            raise ValueError(f"A turn has a {type(part).__name__}, expected Image or Video.")
        if joined and isinstance(part, str) and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return tuple(joined)


def _plain(parts: tuple[Part, ...]) -> str | tuple[Part, ...]:
    return "".join(parts) if all(isinstance(part, str) for part in parts) else parts


def without_period(text: str) -> str:
    """A question without blanks and one period at its end, where the template puts its own."""
    return text.rstrip().removesuffix(".")


def segments_of(parts: Iterable[Part], loss: bool) -> list[Segment]:
    """Texts and media as segments with this loss flag; adjacent texts become one."""
    return [
        Text(part, loss) if isinstance(part, str) else dataclasses.replace(part, loss=loss)
        for part in _joined(parts)
    ]


def chat_document(turns: Iterable[Turn], system: str = SYSTEM) -> Document:
    """The document of answered turns; ValueError for none, or for one without an answer."""
    turns = tuple(turns)
    if not turns:
        raise ValueError("A chat has no turn, expected at least one.")
    segments: list[Segment] = []
    for number, turn in enumerate(turns):
        if turn.answer is None:
            raise ValueError(f"Turn {number} of a chat has no answer.")
        segments += _question(turn, system if number == 0 else None)
        segments += segments_of(turn.answered(), loss=True) or [Text("")]
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
    return segments_of((opening, *turn.asked(), _ASSISTANT), loss=False)


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
    parts = [segment.text if isinstance(segment, Text) else segment for segment in group]
    if not parts or not isinstance(parts[0], str) or not parts[0].startswith(opening):
        raise ValueError(f"Turn {number} of a chat does not begin with {opening!r}.")
    parts[0] = parts[0].removeprefix(opening)
    for at, part in enumerate(parts):
        if isinstance(part, str) and _ASSISTANT in part:
            asked, _, answered = part.partition(_ASSISTANT)
            return Turn((*parts[:at], asked), (answered, *parts[at + 1 :]))
    raise ValueError(f"Turn {number} of a chat has no {_ASSISTANT!r} after its question.")
