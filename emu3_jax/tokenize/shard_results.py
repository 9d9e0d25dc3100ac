"""How far a split is: what has become of each raw shard, one small file a shard, and what is said.

Several workers, on several machines, share the folder. Any of them may remove it once the dataset
is complete, so a file that is gone is no error here; whoever reads asks for every shard's result.
"""

import dataclasses
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

from emu3_jax.data.tokens.records import Counts, Shard
from emu3_jax.files import write_atomically

log = logging.getLogger(__name__)

PLAN_FILE = "plan.json"
PROGRESS_FOLDER = "progress"
REPORT_SECONDS = 10.0


@dataclasses.dataclass
class ShardResult:
    """What became of one shard; stored as its progress file."""

    items: int
    shards: list[Shard]
    counts: dict[str, Counts]
    skipped: list[dict[str, str]]

    def to_bytes(self) -> bytes:
        """The content of a progress file."""
        return json_bytes(dataclasses.asdict(self))

    @classmethod
    def from_bytes(cls, content: bytes) -> "ShardResult":
        """The inverse of `to_bytes`."""
        plain = json.loads(content)
        shards = [Shard(**shard) for shard in plain["shards"]]
        counts = {kind: Counts(**c) for kind, c in plain["counts"].items()}
        return cls(plain["items"], shards, counts, plain["skipped"])


class ShardResults:
    """The plan of a split and the results of its `shards` raw shards, in a folder of their own."""

    def __init__(self, folder: Path, shards: int):
        self.folder, self.shards = folder / PROGRESS_FOLDER, shards

    def begin(self, plan: dict) -> None:
        """Make the folder and write down what the dataset is made of."""
        write_atomically(self.folder / PLAN_FILE, json_bytes(plan))

    def plan(self) -> dict | None:
        """What `begin` wrote; None where nothing has begun, or all is finished."""
        return read_json(self.folder / PLAN_FILE)

    def store(self, index: int, result: ShardResult) -> None:
        """A shard is finished; its records are written before."""
        write_atomically(self._file(index), result.to_bytes())

    def forget(self, index: int) -> None:
        """A shard is to be done again."""
        self._file(index).unlink(missing_ok=True)

    def results(self) -> list[ShardResult | None]:
        """One result a shard, None for those that are not finished."""
        contents = [_read(self._file(index)) for index in range(self.shards)]
        return [None if one is None else ShardResult.from_bytes(one) for one in contents]

    def remove(self) -> None:
        """Remove the folder; another worker may be doing the same."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:05d}.json"


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


def json_bytes(value: Any) -> bytes:
    """JSON in UTF-8, of any text.

    UTF-8 has no lone surrogates; backslashreplace makes of each what JSON itself writes for it.
    """
    return json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace")


def read_json(file: Path) -> dict | None:
    """What a JSON file holds; None where there is no file."""
    content = _read(file)
    return None if content is None else json.loads(content)


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
