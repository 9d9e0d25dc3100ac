"""Conversations of LLaVA's layout: messages with placeholders, and turns made of them.

A message is {"from": "human" or "gpt", "value": text}. A placeholder in the text stands for the
next medium of the row.
"""

import dataclasses
import itertools
from collections.abc import Sequence

from emu3_jax.data.sources.source import SourceError

ROLES = {"human": "user", "gpt": "assistant"}


@dataclasses.dataclass(frozen=True)
class Message:
    """One message; `parts` are texts and, as numbers from 0, the media of the row in order."""

    role: str
    parts: tuple[str | int, ...]


def checked(conversations: object) -> list[dict[str, str]]:
    """The messages of a row's "conversations"; SourceError for an unknown layout or role."""
    if not isinstance(conversations, list) or not conversations:
        raise SourceError(
            f'expected "conversations" with at least one message, found {conversations!r}'
        )
    for number, message in enumerate(conversations):
        if not isinstance(message, dict) or not isinstance(message.get("value"), str):
            raise SourceError(
                f'message {number} must have "from" and a text "value", found {message!r}'
            )
        role = message.get("from")
        if role not in ROLES:
            raise SourceError(
                f"message {number} has the unknown role {role!r}, expected {' or '.join(ROLES)}"
            )
    return conversations


def numbered(messages: Sequence[tuple[str, str]], placeholder: str | None) -> list[Message]:
    """(role, text) with the placeholders replaced by numbers; None: there are none."""
    numbers = itertools.count()
    found = []
    for role, text in messages:
        first, *others = text.split(placeholder) if placeholder else [text]
        parts: list[str | int] = [first]
        for piece in others:
            parts += [next(numbers), piece]
        found.append(Message(role, tuple(part for part in parts if part != "")))
    return found


def placeholders(messages: Sequence[Message]) -> int:
    """How many media the messages ask for."""
    return sum(isinstance(part, int) for message in messages for part in message.parts)


def check_alternation(messages: Sequence[Message]) -> None:
    """Raises SourceError unless messages of the user and of the assistant alternate."""
    for number, message in enumerate(messages):
        if message.role != ("user", "assistant")[number % 2]:
            raise SourceError(
                f"questions and answers do not alternate: message {number} is of the {message.role}"
            )


def to_turns(
    messages: Sequence[Message], kind: str, media: Sequence[str | bytes]
) -> tuple[dict, ...]:
    """The turns of a `RawItem`; `media` are all of one kind, "image" or "video".

    SourceError if there are more or fewer media than placeholders, if questions and answers do not
    alternate, or if the last question has no answer.
    """
    if (asked := placeholders(messages)) != len(media):
        raise SourceError(f"the row has {asked} placeholders for {len(media)} media ({kind})")
    check_alternation(messages)
    if not messages or len(messages) % 2:
        raise SourceError("the last question has no answer")

    def said(message: Message) -> str | list[dict]:
        if not placeholders([message]):
            return "".join(message.parts)
        return [
            {"text": part} if isinstance(part, str) else {kind: media[part]}
            for part in message.parts
        ]

    pairs = zip(messages[::2], messages[1::2], strict=True)
    return tuple({"question": said(q), "answer": said(a)} for q, a in pairs)
