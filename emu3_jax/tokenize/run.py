"""A whole corpus, shard by shard: resumable, in a fixed order, with a list of skipped items.

A shard is finished when its progress file exists; the file is written after the records. A
restarted run makes the shards without one, and the datasets are the same to the byte. The worker
that finds all shards of a split finished writes dataset.json and then removes the progress files.

Workers communicate only through the output folder: any number of them may start, stop, be killed
and make the same shard at once.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from emu3_jax import vocab
from emu3_jax.data import fluent_emoji
from emu3_jax.data.codec.vision_encoder import VisionEncoder
from emu3_jax.data.sources import open_source
from emu3_jax.data.sources.source import ALWAYS_ALLOWED, too_many_skipped
from emu3_jax.data.tokens.records import (
    DATASET_FILE,
    KINDS,
    Counts,
    DatasetInfo,
    write_dataset_info,
)
from emu3_jax.files import write_atomically
from emu3_jax.sequence import Grammar
from emu3_jax.text import load_text_tokenizer
from emu3_jax.tokenize.shard import ShardMaker
from emu3_jax.tokenize.shard_results import Meter, ShardResult, ShardResults, json_bytes, read_json
from emu3_jax.tokenize.tokenize_config import TokenizeConfig
from emu3_jax.train import weights

log = logging.getLogger(__name__)

SKIPPED_FILE = "skipped.jsonl"
# With fewer items, the share of unusable ones is too uncertain to stop a run early.
EARLY_STOP_ITEMS = 2000


class TokenizeError(ValueError):
    """A corpus that cannot become a dataset; the sentence gives the reason."""


def tokenize(config: TokenizeConfig, encoder: VisionEncoder | None = None) -> list[Path]:
    """Makes the dataset of every split, or this worker's share of it; returns their folders.

    `encoder` replaces the vision tokenizer that the config names. Raises ValueError for a config,
    corpus or tokenizer that cannot be used, for an output made with another config, and if more
    items than `max_skipped` allows are unusable (finished shards are kept, and skipped.jsonl lists
    all reasons found until then).
    """
    splits = open_splits(config, encoder)
    return [
        split.fill(range(config.worker, len(split.maker), config.workers), split.one_by_one)
        for split in splits.values()
    ]


def open_splits(
    config: TokenizeConfig, encoder: VisionEncoder | None = None
) -> "dict[str, SplitJob]":
    """Opens the corpus and the tokenizers and makes nothing yet; errors as `tokenize`."""
    if config.corpus_zip:
        fluent_emoji.prepare(config.corpus_zip, config.corpus)
    sources = {
        split: [open_source(spec, config.corpus, config.items_per_shard) for spec in specs]
        for split, specs in config.splits.items()
    }
    if encoder is None and config.vision_tokenizer:
        encoder = VisionEncoder(*weights.load_vision_tokenizer(config.vision_tokenizer))
    grammar = make_grammar(config, encoder)
    return {
        split: SplitJob(split, ShardMaker(config, split, sources[split], encoder, grammar))
        for split in sources
    }


def make_grammar(config: TokenizeConfig, encoder: VisionEncoder | None) -> Grammar:
    """The grammar of the config's tokenizers; without a vision tokenizer it has one code."""
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


class Maker(Protocol):
    """What makes the records of a dataset, shard by shard, such as `ShardMaker`.

    `config` has `max_skipped`; `folder` is the dataset's; `items_per_shard` is for reports alone.
    """

    config: Any
    folder: Path
    grammar: Grammar
    items_per_shard: int

    def __len__(self) -> int:
        """The number of shards."""

    def plan(self) -> dict[str, Any]:
        """What the bytes depend on, ready for JSON, with the fingerprints of `DatasetInfo`."""

    def make(self, index: int, item_done: Callable[[], None]) -> ShardResult:
        """Makes a shard; its bytes depend on the plan and the index alone."""


class SplitJob:
    """The work on one split, which becomes one dataset."""

    def __init__(self, split: str, maker: Maker):
        self.split, self.maker, self.config = split, maker, maker.config
        self.folder, self.grammar = maker.folder, maker.grammar
        self.progress = ShardResults(self.folder, len(maker))
        self.plan = maker.plan()

    def make(self, index: int, item_done: Callable[[], None] = lambda: None) -> ShardResult:
        """Makes one shard and marks it finished; the bytes do not depend on the worker."""
        result = self.maker.make(index, item_done)
        self.progress.store(index, result)
        return result

    def one_by_one(self, todo: list[int], item_done: Callable[[], None]) -> Iterator[ShardResult]:
        """Makes shards in this process, until other workers have finished the dataset."""
        for index in todo:
            if self.finished():
                return
            yield self.make(index, item_done)

    def fill(
        self,
        mine: Iterable[int],
        make: Callable[[list[int], Callable[[], None]], Iterable[ShardResult]],
    ) -> Path:
        """Makes the unfinished shards of `mine`, and completes the dataset if all are finished.

        `make(todo, item_done)` yields the result of each shard, in any order, and may call
        `item_done` for each item.
        """
        if self.finished():
            log.info("%s: already finished", self.folder)
        else:
            try:
                self._work(mine, make)
            except FileNotFoundError:
                # If workers end together, the first removes files that the others are about to use.
                if not self.finished():
                    raise
        if self.finished():
            self._tidy()
        return self.folder

    def _work(self, mine, make) -> None:
        self.progress.begin(self.plan)
        mine = list(mine)
        self._forget_skips(mine)
        found = self.progress.results()
        todo = [index for index in mine if found[index] is None]
        if len(todo) < len(mine):
            log.info(
                "%s: %d of %d shards are finished", self.split, len(mine) - len(todo), len(mine)
            )
        meter = Meter(self.split, len(todo), self.maker.items_per_shard)
        items, skipped = _sums(found)
        for result in make(todo, meter.item_done):
            meter.shard_done(result.items, len(result.skipped))
            items += result.items
            skipped += result.skipped
            if items >= EARLY_STOP_ITEMS and self._too_many(items, skipped):
                self._check_skipped(*_sums(self.progress.results()))  # those of all workers
        results = self.progress.results()
        if self.finished():
            return  # by another worker, which may already have removed some of the results
        missing = results.count(None)
        if missing:
            log.info("%s: %d shards remain for other workers", self.split, missing)
        else:
            self._finish(results)

    def _forget_skips(self, mine: list[int]) -> None:
        """Redoes shards with skips if too many were skipped before: they may be repaired."""
        found = self.progress.results()
        if not self._too_many(*_sums(found)) and any(one and one.shards for one in found):
            return
        for index in mine:
            if found[index] is not None and found[index].skipped:
                self.progress.forget(index)

    def finished(self) -> bool:
        """Whether the dataset is complete; an error if the folder was made with another plan."""
        info = read_json(self.folder / DATASET_FILE)
        stored = self.progress.plan() if info is None else info["recipe"]
        if stored is None:
            return False
        for name in self.plan | stored:
            if self.plan.get(name) != stored.get(name):
                before, now = (
                    repr(p[name]) if name in p else "not set" for p in (stored, self.plan)
                )
                raise TokenizeError(
                    f"{self.folder}: was made with {name} {before}, the config has {now}; choose "
                    "another output or delete that folder"
                )
        shards = [] if info is None else info["shards"]
        return bool(shards) and all((self.folder / shard["file"]).is_file() for shard in shards)

    def _too_many(self, items: int, skipped: list[dict]) -> bool:
        return too_many_skipped(len(skipped), items, self.config.max_skipped)

    def _list_skipped(self, skipped: list[dict]) -> Path:
        """Writes the skipped items with their reasons; returns the file."""
        file = self.folder / SKIPPED_FILE
        write_atomically(file, b"".join(json_bytes(one) + b"\n" for one in skipped))
        return file

    def _check_skipped(self, items: int, skipped: list[dict]) -> None:
        """Raises the error for too many skipped items, after listing all of them."""
        if not self._too_many(items, skipped):
            return
        allowed = f"max_skipped={self.config.max_skipped:g} allows"
        if self.config.max_skipped:
            allowed += f" (at least {ALWAYS_ALLOWED})"
        raise TokenizeError(
            f"{self._list_skipped(skipped)} lists why {len(skipped)} of {items} items are "
            f"unusable, more than {allowed}; repair them and run this again; the first: "
            f"{skipped[0]['where']}: {skipped[0]['reason']}"
        )

    def _finish(self, results: list[ShardResult]) -> None:
        """Writes dataset.json from the results of all shards; every worker would write the same."""
        items, skipped = _sums(results)
        self._check_skipped(items, skipped)
        counts: dict[str, Counts] = {}
        for kind in KINDS:
            total = sum((r.counts[kind] for r in results if kind in r.counts), Counts())
            if total.records:
                counts[kind] = total
        if not counts:
            raise TokenizeError(
                f"{self._list_skipped(skipped)} lists why no item of {items} became a record: the "
                "corpus is empty"
            )
        self._list_skipped(skipped)
        shards = sorted(
            (shard for result in results for shard in result.shards),
            key=lambda shard: KINDS.index(shard.kind),
        )
        info = DatasetInfo(
            self.grammar.vocab,
            self.plan["text_tokenizer"],
            self.plan["vision_tokenizer"],
            self.plan["video_format"],
            tuple(shards),
            counts,
            len(skipped),
            self.plan,
        )
        write_dataset_info(self.folder, info)
        _report(self.folder, counts, skipped)

    def _tidy(self) -> None:
        """Removes files that a finished dataset does not need; other workers may do so too."""
        self.progress.remove()
        for leftover in self.folder.glob("*.tmp"):
            leftover.unlink(missing_ok=True)  # from a killed run


def _sums(results: list[ShardResult | None]) -> tuple[int, list[dict[str, str]]]:
    """Number of items, and the skipped ones, of the finished shards."""
    done = [result for result in results if result is not None]
    return sum(one.items for one in done), [skip for one in done for skip in one.skipped]


def _report(folder: Path, counts: dict[str, Counts], skipped: list[dict]) -> None:
    held = ", ".join(
        f"{c.records} {kind} ({c.tokens} tokens"
        + (f", {c.without_caption} without caption)" if c.without_caption else ")")
        for kind, c in counts.items()
    )
    log.info("%s: %s; %d skipped (%s)", folder, held, len(skipped), SKIPPED_FILE)
