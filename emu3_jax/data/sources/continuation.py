"""A corpus of clips as clips to continue: the first seconds are given, the rest is learnt."""

import dataclasses
import math
from collections.abc import Iterator

from emu3_jax.data.sources.source import RawItem, Source, SourceError


class ContinuationSource:
    """The clips of another source as documents: caption, context, continuation.

    The context is the first `seconds` of a clip, rounded to frames and down to whole latent frames.
    Only the continuation is trained on. (Paper: 2 seconds are continued by 2; the layout of its
    prompt is not public.) Items that are no clip are problems.
    """

    def __init__(self, seconds: float, source: Source):
        if not 0 < seconds < math.inf:
            raise SourceError(f"continuation: a context has more than 0 s, found {seconds:g}")
        self.name, self.num_shards = source.name, source.num_shards
        self._seconds, self._source = seconds, source

    def items(self, shard: int) -> Iterator[RawItem]:
        """The items of the same shard of the other source."""
        return map(self._document, self._source.items(shard))

    def listed(self, shard: int) -> Iterator[RawItem]:
        """The whole clips, as the other source lists them."""
        return self._source.listed(shard)

    def _document(self, item: RawItem) -> RawItem:
        if item.problem:
            return item
        if item.kind != "video":
            problem = f"it is no clip that can be continued, but of the kind {item.kind}"
            return dataclasses.replace(item, problem=problem)
        caption = ({"text": item.text, "loss": False},) if item.text else ()
        clip = {"video": item.video, "context": self._seconds}
        return dataclasses.replace(item, text="", video=None, segments=(*caption, clip))
