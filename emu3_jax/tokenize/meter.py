"""How far a split is, said now and then while it is made."""

import logging
import time

log = logging.getLogger(__name__)

REPORT_SECONDS = 10.0


class Meter:
    """Says now and then how far a split is and when it will be done."""

    def __init__(self, split: str, shards: int, items_per_shard: int):
        self.split, self.shards, self.per_shard = split, shards, items_per_shard
        self.items = self.in_shard = self.done = self.skipped = 0
        self.start = self.last = time.monotonic()

    def item_done(self) -> None:
        """Count one item; say something if that was long ago."""
        self.items += 1
        self.in_shard += 1
        if time.monotonic() - self.last > REPORT_SECONDS:
            self.say()

    def shard_done(self, items: int, skipped: int) -> None:
        """Count one shard: its items, counted one by one before or not, and those skipped."""
        self.done += 1
        self.items += items - self.in_shard
        self.skipped += skipped
        # What shards really hold: tars do not keep to items_per_shard.
        self.per_shard, self.in_shard = max(1, self.items / self.done), 0
        self.say()

    def say(self) -> None:
        """Log shards, items, their rate, skips and the time left."""
        self.last = time.monotonic()
        spent = self.last - self.start
        share = (self.done + min(1.0, self.in_shard / self.per_shard)) / self.shards
        left = spent / share - spent if share else float("nan")
        log.info(
            "%s: shard %d of %d, %d items, %.1f items/s, %d skipped, about %.0f s left",
            *(self.split, self.done, self.shards, self.items, self.items / max(spent, 1e-9)),
            *(self.skipped, left),
        )
