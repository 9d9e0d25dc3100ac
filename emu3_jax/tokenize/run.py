"""A whole corpus, shard by shard: resumable, in a fixed order, with an account of what was skipped.

A shard is finished when its progress file exists; that is written after its records. A run that
starts again does the shards without one, and the datasets end up the same to the byte. The worker
that finds all shards of a split finished writes dataset.json, and then the progress files go.
"""

import collections
import dataclasses
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from emu3_jax import vocab
from emu3_jax.data import fluent_emoji
from emu3_jax.data.media import PixelLimits, write_atomically
from emu3_jax.data.records import (
    DATASET_FILE,
    KINDS,
    Counts,
    DatasetInfo,
    Record,
    Shard,
    ShardWriter,
    write_dataset_info,
)
from emu3_jax.data.sources import RawItem, Source, SourceError, open_source
from emu3_jax.sequence import Grammar
from emu3_jax.text import load_text_tokenizer
from emu3_jax.tokenize.config import TokenizeConfig
from emu3_jax.tokenize.encoder import Batcher, VisionEncoder
from emu3_jax.tokenize.meter import Meter
from emu3_jax.tokenize.prepare import MediaRules, Prepared, moved, prepare, to_record
from emu3_jax.tokenize.progress import Progress, ShardResult, json_bytes, read_json

log = logging.getLogger(__name__)

SKIPPED_FILE = "skipped.jsonl"
# Fewer items than this say too little about the share that is unusable to stop a run early.
EARLY_STOP_ITEMS = 2000


class TokenizeError(ValueError):
    """A corpus that cannot be made into a dataset; the sentence says why."""


def tokenize(config: TokenizeConfig, encoder: VisionEncoder | None = None) -> list[Path]:
    """Make the dataset of every split; returns their folders.

    `encoder` stands in for the vision tokenizer the config names. Raises ValueError for a config,
    corpus or tokenizer that cannot be used, for an output made with another config, and where more
    items than `max_skipped` are unusable (finished shards stay).
    """
    if config.corpus_zip:
        fluent_emoji.prepare(config.corpus_zip, config.corpus)
    sources = {
        split: [open_source(spec, config.corpus, config.items_per_shard) for spec in specs]
        for split, specs in config.splits.items()
    }
    if encoder is None and config.vision_tokenizer:
        encoder = VisionEncoder.load(config.vision_tokenizer)
    grammar = make_grammar(config, encoder)
    return [_Split(config, split, sources[split], encoder, grammar).run() for split in sources]


def make_grammar(config: TokenizeConfig, encoder: VisionEncoder | None) -> Grammar:
    """The grammar of the config's tokenizers; without a vision tokenizer one code is left room."""
    tokenizer = load_text_tokenizer(config.text_tokenizer)
    codebook_size = encoder.codebook_size if encoder else 1
    if config.vocabulary == "released":
        layout = vocab.released()
        if codebook_size > layout.codebook_size:
            raise TokenizeError(
                f"{config.vision_tokenizer}: has {codebook_size} codes, the released vocabulary "
                f"only {layout.codebook_size}"
            )
    else:
        layout = vocab.small(tokenizer.size, codebook_size)
    return Grammar(layout, tokenizer, config.video_format)


class _Split:
    """One split on its way to one dataset."""

    def __init__(self, config, split: str, sources: list[Source], encoder, grammar: Grammar):
        self.config, self.split, self.grammar = config, split, grammar
        self.encoder = encoder
        self.folder = Path(config.output) / split
        # The raw shards of all sources in a row; their number in it names the output files.
        self.shards = [(source, i) for source in sources for i in range(source.num_shards)]
        self.progress = Progress(self.folder, len(self.shards))
        self.rules = None
        if encoder is not None:
            limits = PixelLimits(config.min_pixels, config.max_pixels, encoder.spatial_factor)
            fps, frames = config.fps or None, config.max_frames or None
            self.rules = MediaRules(limits, encoder.temporal_factor, fps, frames)

    def run(self) -> Path:
        plan = self._plan()
        if self._finished(plan):
            log.info("%s: is finished already", self.folder)
        else:
            try:
                self._work(plan)
            except FileNotFoundError:
                # Where workers end together, the first removes what the others are about to use.
                if not self._finished(plan):
                    raise
        if self._finished(plan):
            self._tidy()
        return self.folder

    def _work(self, plan: dict) -> None:
        """Do this worker's shards, and finish the dataset if none is left to others."""
        self.progress.begin(plan)
        mine = range(self.config.worker, len(self.shards), self.config.workers)
        self._forget_skips(mine)
        found = self.progress.results()
        todo = [index for index in mine if found[index] is None]
        if len(todo) < len(mine):
            log.info("%s: %d of %d shards are there", self.split, len(mine) - len(todo), len(mine))
        meter = Meter(self.split, len(todo), self.config.items_per_shard)
        items, skipped = _sums(found)
        for index in todo:
            if self._finished(plan):
                return  # the others have done it all since this worker began
            result = self._shard(index, meter)
            self.progress.store(index, result)
            meter.shard_done(len(result.skipped))
            items += result.items
            skipped += result.skipped
            if items >= EARLY_STOP_ITEMS:
                self._check_skipped(items, skipped)
        results = self.progress.results()
        if self._finished(plan):
            return  # by another worker, which may have removed some of the results meanwhile
        missing = results.count(None)
        if missing:
            log.info("%s: %d shards are left to other workers", self.split, missing)
        else:
            self._finish(plan, results)

    def _forget_skips(self, mine: range) -> None:
        """Where too much was skipped before, do the shards with skips again: it may be repaired."""
        found = self.progress.results()
        if not self._too_many(*_sums(found)) and any(one and one.shards for one in found):
            return
        for index in mine:
            if found[index] is not None and found[index].skipped:
                self.progress.forget(index)

    def _plan(self) -> dict:
        return {
            "vocabulary": self.grammar.vocab.fingerprint,
            "text_tokenizer": self.grammar.tokenizer.fingerprint,
            "vision_tokenizer": self.encoder.fingerprint if self.encoder else "",
            "video_format": self.grammar.video_format,
            "raw_shards": len(self.shards),
            **self.config.recipe(self.split),
        }

    def _finished(self, plan: dict) -> bool:
        """Whether the dataset is there, whole; an error if what is there had another plan."""
        info = read_json(self.folder / DATASET_FILE)
        stored = self.progress.plan() if info is None else info["recipe"]
        if stored is None:
            return False
        for name in plan | stored:
            if plan.get(name) != stored.get(name):
                before, now = (repr(p[name]) if name in p else "not set" for p in (stored, plan))
                raise TokenizeError(
                    f"{self.folder}: was made with {name} {before}, now it is {now}; choose "
                    "another output or delete that folder"
                )
        shards = [] if info is None else info["shards"]
        return bool(shards) and all((self.folder / shard["file"]).is_file() for shard in shards)

    def _shard(self, index: int, meter: Meter) -> ShardResult:
        """Read, encode and write one raw shard; the records stand in the order of the items."""
        source, number = self.shards[index]
        result = ShardResult(0, [], {}, [])
        prepared: list[list[Prepared]] = []  # each item with its copies
        batcher = Batcher(self.encoder, self.config.image_batch, self.config.clip_batch)
        for item, outcome in self._decoded(_until_damage(source, number)):
            result.items += 1
            meter.item_done()
            if not isinstance(outcome, Prepared):
                result.skipped.append(_skipped(item, outcome))
                continue
            prepared.append([outcome, *self._copies(outcome)])
            for medium in (medium for one in prepared[-1] for medium in one.media):
                batcher.add(medium.pixels, medium.take)
        batcher.flush()
        by_kind: dict[str, list[Record]] = collections.defaultdict(list)
        for versions in prepared:
            try:
                made = [to_record(one, source.name, self.grammar) for one in versions]
            except ValueError as error:
                result.skipped.append(_skipped(versions[0].item, error))
                continue
            for record, length in made:
                by_kind[record.kind].append(record)
                counted = result.counts.get(record.kind, Counts())
                result.counts[record.kind] = counted + Counts(1, length, length, length)
        for kind in sorted(by_kind, key=KINDS.index):
            name = f"{kind}-{index:05d}-of-{len(self.shards):05d}.array_record"
            with ShardWriter(self.folder / name) as writer:
                for record in by_kind[kind]:
                    writer.write(record)
            result.shards.append(Shard(name, kind, len(by_kind[kind])))
        return result

    def _copies(self, prepared: Prepared) -> list[Prepared]:
        """Further versions of an item with media, as many as the config asks for."""
        copies = self.config.copies.get(self.split, 1) if prepared.media else 1
        return [moved(prepared, copy, self.config.max_shift) for copy in range(1, copies)]

    def _decoded(self, items: Iterator[RawItem]) -> Iterator[tuple[RawItem, object]]:
        """Items with what `prepare` made of them or its error, in order; decoded by threads."""
        seen: set[str] = set()
        waiting: collections.deque = collections.deque()
        threads = self.config.decode_threads
        with ThreadPoolExecutor(threads) as pool:
            for item in items:
                if item.key in seen:
                    item = dataclasses.replace(item, problem="its id stood in this shard before")
                seen.add(item.key)
                waiting.append((item, pool.submit(prepare, item, self.rules)))
                if len(waiting) > 4 * threads:
                    yield _outcome(*waiting.popleft())
            while waiting:
                yield _outcome(*waiting.popleft())

    def _too_many(self, items: int, skipped: list[dict]) -> bool:
        return len(skipped) > self.config.max_skipped * items

    def _check_skipped(self, items: int, skipped: list[dict]) -> None:
        if self._too_many(items, skipped):
            raise TokenizeError(
                f"{self.split}: {len(skipped)} of {items} items are unusable, more than the share "
                f"max_skipped={self.config.max_skipped:g}; repair them and run this again; the "
                f"first: {skipped[0]['where']}: {skipped[0]['reason']}"
            )

    def _finish(self, plan: dict, results: list[ShardResult]) -> None:
        """Write dataset.json of the results of all shards: each worker would write the same."""
        items, skipped = _sums(results)
        self._check_skipped(items, skipped)
        counts: dict[str, Counts] = {}
        for kind in KINDS:
            total = sum((r.counts[kind] for r in results if kind in r.counts), Counts())
            if total.records:
                counts[kind] = total
        if not counts:
            raise TokenizeError(f"{self.split}: the corpus is empty, not one item became a record")
        lines = [json_bytes(one) + b"\n" for one in skipped]
        write_atomically(self.folder / SKIPPED_FILE, b"".join(lines))
        shards = sorted(
            (shard for result in results for shard in result.shards),
            key=lambda shard: (KINDS.index(shard.kind), shard.file),
        )
        info = DatasetInfo(
            self.grammar.vocab,
            plan["text_tokenizer"],
            plan["vision_tokenizer"],
            plan["video_format"],
            tuple(shards),
            counts,
            len(skipped),
            plan,
        )
        write_dataset_info(self.folder, info)
        _report(self.folder, counts, skipped)

    def _tidy(self) -> None:
        """Remove what a finished dataset no longer needs; other workers may be at it, too."""
        self.progress.remove()
        for leftover in self.folder.glob("*.tmp"):
            leftover.unlink(missing_ok=True)  # of a run that was killed


def _until_damage(source: Source, number: int) -> Iterator[RawItem]:
    """The items of a shard; what cannot be read of it counts as one item with a problem."""
    try:
        yield from source.items(number)
    except SourceError as error:
        where = f"{source.name}, shard {number}"
        yield RawItem(where, where=where, problem=str(error))


def _sums(results: list[ShardResult | None]) -> tuple[int, list[dict[str, str]]]:
    """Number of items, and those skipped, of the shards that are finished."""
    done = [result for result in results if result is not None]
    return sum(one.items for one in done), [skip for one in done for skip in one.skipped]


def _outcome(item: RawItem, future) -> tuple[RawItem, object]:
    try:
        return item, future.result()
    except ValueError as error:
        return item, error


def _skipped(item: RawItem, reason: object) -> dict[str, str]:
    return {"key": item.key, "where": item.where, "reason": str(reason)}


def _report(folder: Path, counts: dict[str, Counts], skipped: list[dict]) -> None:
    held = ", ".join(f"{c.records} {kind} ({c.tokens} tokens)" for kind, c in counts.items())
    log.info("%s: %s; %d skipped (%s)", folder, held, len(skipped), SKIPPED_FILE)
