"""The interface of a raw corpus: items, one shard at a time, in a fixed order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


class SourceError(ValueError):
    """A corpus that cannot be read; the sentence names the file and what was expected."""


MEDIA = ("image", "video")
# The share of unusable items up to which a corpus is used; with more, something is wrong with it.
MAX_SKIPPED = 0.01
# So many are no error whatever their share: in a small corpus one item may be more than the share.
ALWAYS_ALLOWED = 5


def too_many_skipped(skipped: int, items: int, share: float = MAX_SKIPPED) -> bool:
    """Whether `skipped` of `items` are more than `share` allows; a share of 0 allows none."""
    return skipped > (max(share * items, ALWAYS_ALLOWED) if share else 0)


def one_medium(media: dict) -> dict:
    """The one to store of {"image": …, "video": …}: an image beside a clip is its thumbnail."""
    return {"video": media["video"]} if "video" in media else media


@dataclass(frozen=True)
class Stored:
    """A medium within a larger file, read when it is needed.

    Attributes:
      read: returns the bytes of an image or video file, or uint8 pixels; raises SourceError or
        OSError.
    """

    read: Callable[[], bytes | np.ndarray]


@dataclass(frozen=True)
class RawItem:
    """One raw example, of one of six kinds.

    A caption with at most one of `image` and `video` (a path, the file's bytes, uint8 pixels, or
    `Stored`, see `Source.listed`);
    or `segments`, an interleaved document; or `turns`, a chat. A segment is {"text"}, {"image"} or
    {"video"}, with "loss": False if it is not trained on; a turn is {"question", "answer"}, with
    "image" or "video" if one stands before the question. A question or an answer is a text or, with
    media in it, a list of segments. A {"video"} with "context" is cut after so many seconds into
    two clips, the first of them without a loss. Or a prompt with a `pair` of images, of which the
    first is preferred.
    """

    key: str
    text: str = ""
    image: str | bytes | np.ndarray | Stored | None = None
    video: str | bytes | np.ndarray | Stored | None = None
    segments: tuple[dict, ...] = ()
    turns: tuple[dict, ...] = ()
    pair: tuple[str | bytes, ...] = ()
    attributes: dict = field(default_factory=dict)
    # Frames per second of a `video` given as pixels; 0 if the corpus does not state it.
    fps: float = 0.0
    # The item's name in messages: file and line, or tar and member.
    where: str = ""
    # Why the source could not read the item; "" if it could.
    problem: str = ""

    @property
    def kind(self) -> str:
        """One of `records.KINDS`."""
        if self.pair:
            return "preference"
        if self.turns:
            return "chat"
        if self.segments:
            return "document"
        return (
            "text"
            if self.image is None and self.video is None
            else ("video" if self.image is None else "image")
        )


def parts_of(item: RawItem) -> Iterator[dict]:
    """The segments and turns of an item and the segments within its turns, in reading order."""
    yield from item.segments
    for turn in item.turns:
        yield turn
        for said in (turn.get("question"), turn.get("answer")):
            if isinstance(said, list | tuple):
                yield from said


class Source(Protocol):
    """A corpus cut into shards."""

    name: str

    @property
    def num_shards(self) -> int:
        """Number of shards (at least one)."""

    def items(self, shard: int) -> Iterator[RawItem]:
        """The items of one shard, in the same order at every call.

        If the rest of the shard cannot be read, raises SourceError after the items before it.
        """

    def listed(self, shard: int) -> Iterator[RawItem]:
        """The items of one shard as `items`, but no media are held: they are paths or `Stored`.

        For a corpus whose media are read in any order. Texts may be missing.
        """
