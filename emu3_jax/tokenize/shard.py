"""One raw shard to its records, reproducible to the byte."""

import collections
import functools
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from emu3_jax.data.codec.canvases import Batcher
from emu3_jax.data.codec.vision_encoder import VisionEncoder
from emu3_jax.data.media import PixelLimits
from emu3_jax.data.sources import RawItem, Source, SourceError
from emu3_jax.data.tokens.records import KINDS, Counts, Record, Shard, ShardWriter
from emu3_jax.sequence import Grammar
from emu3_jax.tokenize.prepare import MediaRules, Medium, Prepared, moved, prepare, to_record
from emu3_jax.tokenize.shard_results import ShardResult
from emu3_jax.tokenize.tokenize_config import TokenizeConfig


class ShardMaker:
    """Makes the shards of one split: `make(i)` for any i below `len(self)`, in any order."""

    def __init__(
        self,
        config: TokenizeConfig,
        split: str,
        sources: list[Source],
        encoder: VisionEncoder | None,
        grammar: Grammar,
    ):
        self.config, self.encoder, self.grammar = config, encoder, grammar
        self.folder = Path(config.output) / split
        self.split, self.copies = split, config.copies.get(split, 1)
        self.items_per_shard = config.items_per_shard
        # The raw shards of all sources in order; the index names the output files.
        self.shards = [(source, i) for source in sources for i in range(source.num_shards)]
        self.rules = None
        if encoder is not None:
            limits = PixelLimits(
                config.min_pixels, config.max_pixels, encoder.spatial_factor, config.area
            )
            fps, frames = config.fps or None, config.max_frames or None
            self.rules = MediaRules(limits, encoder.temporal_factor, fps, frames)

    def __len__(self) -> int:
        return len(self.shards)

    def plan(self) -> dict[str, Any]:
        """What the bytes of the dataset depend on."""
        return {
            "vocabulary": self.grammar.vocab.fingerprint,
            "text_tokenizer": self.grammar.tokenizer.fingerprint,
            "vision_tokenizer": self.encoder.fingerprint if self.encoder else "",
            "video_format": self.grammar.video_format,
            "raw_shards": len(self),
            **self.config.recipe(self.split),
        }

    def make(self, index: int, item_done: Callable[[], None]) -> ShardResult:
        """Reads, encodes and writes one raw shard; the records keep the order of the items."""
        source, number = self.shards[index]
        result = ShardResult(0, [], {}, [])
        prepared: list[list[Prepared]] = []  # each item with its copies
        once = None
        if self.encoder is not None:
            sizes = self.config.image_batch, self.config.clip_batch
            once = _EncodedOnce(self.encoder.batcher(*sizes))
        for item, outcome in self.decoded(_until_damage(source, number)):
            result.items += 1
            item_done()
            if not isinstance(outcome, Prepared):
                result.skipped.append(_skipped(item, outcome))
                continue
            prepared.append([outcome, *self._copies(outcome)])
            for medium in (medium for one in prepared[-1] for medium in one.media):
                once.add(medium)
        if once is not None:
            once.flush()
        self._write(index, self._records(prepared, source.name, result), result)
        return result

    def decoded(self, items: Iterator[RawItem]) -> Iterator[tuple[RawItem, Prepared | ValueError]]:
        """Items with the result of `prepare` or its error, in order; threads decode them."""
        waiting: collections.deque = collections.deque()
        threads = self.config.decode_threads
        with ThreadPoolExecutor(threads) as pool:
            for item in items:
                waiting.append((item, pool.submit(prepare, item, self.rules)))
                if len(waiting) > 4 * threads:
                    yield _outcome(*waiting.popleft())
            while waiting:
                yield _outcome(*waiting.popleft())

    def _copies(self, prepared: Prepared) -> list[Prepared]:
        """Moved copies of an item with media, as many as the config sets."""
        copies = self.copies if prepared.media else 1
        return [moved(prepared, copy, self.config.max_shift) for copy in range(1, copies)]

    def _records(
        self, prepared: list[list[Prepared]], source: str, result: ShardResult
    ) -> dict[str, list[Record]]:
        """Records by kind; counts them and the skipped items in the result."""
        by_kind: dict[str, list[Record]] = collections.defaultdict(list)
        for versions in prepared:
            try:
                made = [to_record(one, source, self.grammar) for one in versions]
            except ValueError as error:
                result.skipped.append(_skipped(versions[0].item, error))
                continue
            for record, counted in made:
                by_kind[record.kind].append(record)
                result.counts[record.kind] = result.counts.get(record.kind, Counts()) + counted
        return by_kind

    def _write(self, index: int, by_kind: dict[str, list[Record]], result: ShardResult) -> None:
        for kind in sorted(by_kind, key=KINDS.index):
            name = f"{kind}-{index:05d}-of-{len(self):05d}.array_record"
            with ShardWriter(self.folder / name) as writer:
                for record in by_kind[kind]:
                    writer.write(record)
            result.shards.append(Shard(name, kind, len(by_kind[kind])))


class _EncodedOnce:
    """Encodes equal media of a shard once: question sets have many rows about one image."""

    def __init__(self, batcher: Batcher):
        self._batcher = batcher
        self._waiting: dict[bytes, list[Medium]] = {}
        self._codes: dict[bytes, np.ndarray] = {}

    def add(self, medium: Medium) -> None:
        """Encodes a medium now or later, or gives it the codes of an equal one."""
        shape, pixels = repr(medium.pixels.shape), np.ascontiguousarray(medium.pixels)
        key = hashlib.blake2b(shape.encode() + pixels.tobytes(), digest_size=16).digest()
        if key in self._codes:
            medium.take(self._codes[key])
        elif key in self._waiting:
            medium.pixels = None
            self._waiting[key].append(medium)
        else:
            self._waiting[key] = [medium]
            self._batcher.add(medium.pixels, functools.partial(self._done, key))

    def _done(self, key: bytes, codes: np.ndarray) -> None:
        self._codes[key] = codes
        for medium in self._waiting.pop(key):
            medium.take(codes)

    def flush(self) -> None:
        """Encodes what is left."""
        self._batcher.flush()


def _until_damage(source: Source, number: int) -> Iterator[RawItem]:
    """The items of a shard; its unreadable rest counts as one item with a problem."""
    try:
        yield from source.items(number)
    except SourceError as error:
        where = f"{source.name}, shard {number}"
        yield RawItem(where, where=where, problem=str(error))


def _outcome(item: RawItem, future) -> tuple[RawItem, Prepared | ValueError]:
    try:
        return item, future.result()
    except ValueError as error:
        return item, error


def _skipped(item: RawItem, reason: object) -> dict[str, str]:
    return {"key": item.key, "where": item.where, "reason": str(reason)}
