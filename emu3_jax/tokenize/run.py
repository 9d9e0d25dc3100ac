"""A whole corpus, shard by shard: resumable, in a fixed order, with an account of what was skipped.

A shard is finished when its progress file exists; that is written after its records. A run that
starts again does the shards without one, and the datasets end up the same to the byte. When all
shards of a split are finished, dataset.json is written last and the progress files go.
"""

import collections
import dataclasses
import json
import logging
import shutil
import time
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
    Shard,
    ShardWriter,
    write_dataset_info,
)
from emu3_jax.data.sources import RawItem, Source, open_source
from emu3_jax.sequence import Grammar
from emu3_jax.text import load_text_tokenizer
from emu3_jax.tokenize.config import TokenizeConfig
from emu3_jax.tokenize.encoder import Batcher, VisionEncoder
from emu3_jax.tokenize.prepare import MediaRules, Prepared, moved, prepare, to_record

log = logging.getLogger(__name__)

PLAN_FILE = "plan.json"
SKIPPED_FILE = "skipped.jsonl"
PROGRESS_FOLDER = "progress"
# Fewer items than this say too little about the share that is unusable to stop a run early.
EARLY_STOP_ITEMS = 2000
REPORT_SECONDS = 10.0


class TokenizeError(ValueError):
    """A corpus that cannot be made into a dataset; the sentence says why."""


@dataclasses.dataclass
class ShardResult:
    """What became of one shard; stored as its progress file."""

    items: int
    shards: list[Shard]
    counts: dict[str, Counts]
    skipped: list[dict[str, str]]

    def to_json(self) -> str:
        """The text of a progress file."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "ShardResult":
        """The inverse of `to_json`."""
        plain = json.loads(text)
        shards = [Shard(**shard) for shard in plain["shards"]]
        counts = {kind: Counts(**c) for kind, c in plain["counts"].items()}
        return cls(plain["items"], shards, counts, plain["skipped"])


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
        self.progress = self.folder / PROGRESS_FOLDER
        # The raw shards of all sources in a row; their number in it names the output files.
        self.shards = [(source, i) for source in sources for i in range(source.num_shards)]
        self.rules = None
        if encoder is not None:
            limits = PixelLimits(config.min_pixels, config.max_pixels, encoder.spatial_factor)
            fps, frames = config.fps or None, config.max_frames or None
            self.rules = MediaRules(limits, encoder.temporal_factor, fps, frames)

    def run(self) -> Path:
        plan = self._plan()
        if self._finished(plan):
            log.info("%s: is finished already", self.folder)
            return self.folder
        self.progress.mkdir(parents=True, exist_ok=True)
        write_atomically(self.progress / PLAN_FILE, json.dumps(plan, indent=1).encode())
        mine = range(self.config.worker, len(self.shards), self.config.workers)
        todo = [index for index in mine if not self._progress_file(index).exists()]
        if len(todo) < len(mine):
            log.info("%s: %d of %d shards are there", self.split, len(mine) - len(todo), len(mine))
        meter = _Meter(self.split, len(todo), self.config.items_per_shard)
        found = self._results()
        items = sum(result.items for result in found)
        skipped = [one for result in found for one in result.skipped]
        for index in todo:
            result = self._shard(index, meter)
            write_atomically(self._progress_file(index), result.to_json().encode())
            meter.shard_done(len(result.skipped))
            items += result.items
            skipped += result.skipped
            if items >= EARLY_STOP_ITEMS:
                self._check_skipped(items, skipped)
        missing = [i for i in range(len(self.shards)) if not self._progress_file(i).exists()]
        if missing:
            log.info("%s: %d shards are left to other workers", self.split, len(missing))
        else:
            self._finish(plan)
        return self.folder

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
        """Whether the dataset is there; an error if it, or its beginning, had another plan."""
        finished = (self.folder / DATASET_FILE).is_file()
        file = self.folder / DATASET_FILE if finished else self.progress / PLAN_FILE
        if not file.is_file():
            return False
        stored = json.loads(file.read_text())
        stored = stored["recipe"] if finished else stored
        for name in plan:
            if stored.get(name) != plan[name]:
                raise TokenizeError(
                    f"{self.folder}: was made with {name} {stored.get(name)!r}, now it is "
                    f"{plan[name]!r}; choose another output or delete that folder"
                )
        return finished

    def _progress_file(self, index: int) -> Path:
        return self.progress / f"{index:05d}.json"

    def _shard(self, index: int, meter: "_Meter") -> ShardResult:
        """Read, encode and write one raw shard; the records stand in the order of the items."""
        source, number = self.shards[index]
        result = ShardResult(0, [], {}, [])
        prepared: list[Prepared] = []
        batcher = Batcher(self.encoder, self.config.image_batch, self.config.clip_batch)
        for item, outcome in self._decoded(source.items(number)):
            result.items += 1
            meter.item_done()
            if not isinstance(outcome, Prepared):
                result.skipped.append(_skipped(item, outcome))
                continue
            for one in (outcome, *self._copies(outcome)):
                prepared.append(one)
                for medium in one.media:
                    batcher.add(medium.pixels, medium.take)
        batcher.flush()
        by_kind = collections.defaultdict(list)
        for one in prepared:
            try:
                record, length = to_record(one, source.name, self.grammar)
            except ValueError as error:
                result.skipped.append(_skipped(one.item, error))
                continue
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

    def _results(self) -> list[ShardResult]:
        files = [self._progress_file(index) for index in range(len(self.shards))]
        return [ShardResult.from_json(f.read_text()) for f in files if f.exists()]

    def _check_skipped(self, items: int, skipped: list[dict]) -> None:
        if len(skipped) > self.config.max_skipped * items:
            raise TokenizeError(
                f"{self.split}: {len(skipped)} of {items} items are unusable, more than the share "
                f"max_skipped={self.config.max_skipped:g}; the first: {skipped[0]['where']}: "
                f"{skipped[0]['reason']}"
            )

    def _finish(self, plan: dict) -> None:
        results = self._results()
        skipped = [one for result in results for one in result.skipped]
        self._check_skipped(sum(result.items for result in results), skipped)
        counts: dict[str, Counts] = {}
        for kind in KINDS:
            total = sum((r.counts[kind] for r in results if kind in r.counts), Counts())
            if total.records:
                counts[kind] = total
        if not counts:
            raise TokenizeError(f"{self.split}: the corpus is empty, not one item became a record")
        lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in skipped]
        write_atomically(self.folder / SKIPPED_FILE, "".join(lines).encode())
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
        shutil.rmtree(self.progress)
        for leftover in (*self.folder.glob("*.tmp"), *self.folder.glob(".*.tmp")):
            leftover.unlink()  # of a run that was killed
        _report(self.folder, counts, skipped)


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


class _Meter:
    """Says now and then how far a split is and when it will be done."""

    def __init__(self, split: str, shards: int, items_per_shard: int):
        self.split, self.shards, self.per_shard = split, shards, items_per_shard
        self.items = self.in_shard = self.done = self.skipped = 0
        self.start = self.last = time.monotonic()

    def item_done(self) -> None:
        self.items += 1
        self.in_shard += 1
        if time.monotonic() - self.last > REPORT_SECONDS:
            self.say()

    def shard_done(self, skipped: int) -> None:
        self.done += 1
        self.skipped += skipped
        # What shards really hold: tars do not keep to items_per_shard.
        self.per_shard, self.in_shard = max(1, self.items / self.done), 0
        self.say()

    def say(self) -> None:
        self.last = time.monotonic()
        spent = self.last - self.start
        share = (self.done + min(1.0, self.in_shard / self.per_shard)) / self.shards
        left = spent / share - spent if share else float("nan")
        log.info(
            "%s: shard %d of %d, %d items, %.1f items/s, %d skipped, about %.0f s left",
            *(self.split, self.done, self.shards, self.items, self.items / max(spent, 1e-9)),
            *(self.skipped, left),
        )
