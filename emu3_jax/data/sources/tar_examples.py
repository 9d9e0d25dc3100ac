"""The members of a tar to examples, by names alone; what the names leave open is not guessed.

The key of a member is its path up to the first dot of its name, as in WebDataset. Its role is given
by what follows the last dot: image, clip, caption, or json. An example has one member of each role
at most, apart from a clip with one image, which is taken for its thumbnail and not stored. Two of
a role, a name that is there twice, or a key that is there again later in the tar, are problems.

Dots in a key: adjacent members that share a name up to the last dot (photo.2023.7.jpg and
photo.2023.7.txt), one medium and a caption or json, are an example; so is the rest of the key's
members. Members without a role stand beside a medium and are not stored; without a medium they
are a problem, because they may be one. Hidden files (._1.jpg of macOS) are passed over.
"""

import json
import os
from collections.abc import Iterator

from emu3_jax.data.sources.caption_values import caption_of, caption_text, is_missing
from emu3_jax.data.sources.naming import ENDINGS, check_layout, role_of
from emu3_jax.data.sources.source import MEDIA, RawItem, SourceError, Stored, one_medium


class TarExamples:
    """Collects the members of one tar, in order, and yields its examples as they end."""

    def __init__(self, path: str):
        self.path = path
        # The current key; None before the first member.
        self.key: str | None = None
        self._stem = ""
        self._adjacent: list[_Member] = []  # members that share a name up to the last dot
        self._rest: list[_Member] = []  # members of the key that are no example of their own
        self._undecided = False  # whether the rest has several members of a role
        self._seen: set[str] = set()

    def add(self, name: str, content: bytes | Stored, problem: str) -> Iterator[RawItem]:
        """Takes the next member; yields the examples that it shows to have ended."""
        folder, base = os.path.split(name)
        if base.startswith("."):
            return
        key = os.path.join(folder, base.partition(".")[0])
        stem = os.path.join(folder, base.rpartition(".")[0] or base)
        if key != self.key:
            yield from self.end()
        elif stem != self._stem:
            yield from self._stem_ends()
        self.key, self._stem = key, stem
        self._adjacent.append(_Member(name, stem, role_of(name), content, problem))

    def end(self) -> Iterator[RawItem]:
        """Yields the examples of the current key."""
        yield from self._stem_ends()
        if self._rest:
            yield from self._examples(self._rest)
        self._rest, self._undecided = [], False

    def _stem_ends(self) -> Iterator[RawItem]:
        roles = [member.role for member in self._adjacent]
        media = sum(role in MEDIA for role in roles)
        if self._stem != self.key and media == 1 and {"caption", "json"} & set(roles):
            yield from self._examples(self._adjacent)
        else:
            self._rest += self._adjacent
            self._undecided = self._undecided or bool(_surplus(self._rest))
            if self._undecided:  # only the names are needed, and a key may have any number
                for member in self._adjacent:
                    member.content = b""
        self._adjacent = []

    def _examples(self, members: list["_Member"]) -> Iterator[RawItem]:
        """The example of the members, or a problem for each member that is one too many."""
        stems = {member.stem for member in members}
        key = stems.pop() if len(stems) == 1 else self.key
        surplus = _surplus(members)
        if not surplus:
            yield self._first(_item(f"{self.path}:{key}", key, members))
            return
        names = ", ".join(member.name for member in surplus[:4])
        more = f" and {len(surplus) - 4} more" if len(surplus) > 4 else ""
        problem = f"the key {key!r} has several members of one kind ({names}{more}); expected one"
        for member in surplus:
            yield RawItem(member.stem, where=f"{self.path}:{member.name}", problem=problem)

    def _first(self, item: RawItem) -> RawItem:
        """The item, or a problem if its key ended earlier in this tar."""
        if item.key in self._seen:
            problem = "its key appears earlier in this tar; the members of a key must be adjacent"
            return RawItem(item.key, where=item.where, problem=problem)
        self._seen.add(item.key)
        return item


class _Member:
    """A file of a tar: its path, that path up to the last dot, its role and its content."""

    def __init__(self, name: str, stem: str, role: str, content, problem: str):
        self.name, self.stem, self.role = name, stem, role
        self.content, self.problem = content, problem


def _surplus(members: list[_Member]) -> list[_Member]:
    """The members of the first role that has several; [] if each has one at most."""
    for role in ENDINGS:
        chosen = [member for member in members if member.role == role]
        if len(chosen) > 1:
            return chosen
    return []


def _item(where: str, key: str, members: list[_Member]) -> RawItem:
    try:
        return RawItem(key, **_fields(members), where=where)
    except SourceError as error:
        return RawItem(key, where=where, problem=str(error))


def _fields(members: list[_Member]) -> dict:
    """The fields of an example whose roles have one member each; SourceError for a problem."""
    for member in members:
        if member.problem and member.role:
            raise SourceError(member.problem)
        if member.role in MEDIA and not member.content:
            raise SourceError(f"the media member {member.name} is empty")
    by_role = {member.role: member for member in members if member.role}
    media = {role: by_role[role].content for role in MEDIA if role in by_role}
    if not media and len(by_role) < len(members):
        names = ", ".join(member.name for member in members)
        raise SourceError(
            f"no member has the ending of an image or a clip ({names}); known: "
            f"{', '.join(ENDINGS['image'] + ENDINGS['video'])}"
        )
    attributes = _attributes(by_role.get("json"))
    text = _caption(by_role, attributes)
    check_layout(attributes, attributes, has_text=bool(text), has_medium=bool(media))
    return {**one_medium(media), "text": text, "attributes": attributes}


def _attributes(member: _Member | None) -> dict:
    try:
        attributes = json.loads(member.content or b"{}") if member else {}
    except (ValueError, RecursionError) as error:  # RecursionError: brackets thousands deep
        raise SourceError(f"its json member is unreadable ({error})") from error
    if not isinstance(attributes, dict):
        raise SourceError("its json member is not an object")
    return attributes


def _caption(by_role: dict[str, _Member], attributes: dict) -> str:
    if "caption" not in by_role:
        return caption_of(attributes)
    text = caption_text(by_role["caption"].content)
    # img2dataset writes a missing caption of its table as the word into the caption's file.
    stated = attributes.get("caption", text)
    return "" if is_missing(stated) and text.lower() in ("nan", "none") else text
