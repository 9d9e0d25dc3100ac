"""Progress of a split: the result of each raw shard, one small file per shard, and its log lines.

Several workers, on several machines, share the folder. Any of them may remove it once the dataset
is complete, so a missing file is not an error here; callers check every shard's result.
"""

import dataclasses
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

from emu3_jax import compiling
from emu3_jax.data.tokens.records import Counts, Shard
from emu3_jax.files import write_atomically

log = logging.getLogger(__name__)

PLAN_FILE = "plan.json"
PROGRESS_FOLDER = "progress"
REPORT_SECONDS = 10.0


@dataclasses.dataclass
class ShardResult:
    """The result of one shard; stored as its progress file."""

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
    """The plan of a split and the results of its `shards` raw shards, in their own folder."""

    def __init__(self, folder: Path, shards: int):
        self.folder, self.shards = folder / PROGRESS_FOLDER, shards

    def begin(self, plan: dict) -> None:
        """Creates the folder and writes the plan of the dataset."""
        write_atomically(self.folder / PLAN_FILE, json_bytes(plan))

    def plan(self) -> dict | None:
        """The plan that `begin` wrote; None before the start and after the end."""
        return read_json(self.folder / PLAN_FILE)

    def store(self, index: int, result: ShardResult) -> None:
        """Marks a shard as finished; its records are already written."""
        write_atomically(self._file(index), result.to_bytes())

    def forget(self, index: int) -> None:
        """Marks a shard as unfinished."""
        self._file(index).unlink(missing_ok=True)

    def results(self) -> list[ShardResult | None]:
        """One result per shard, None for unfinished ones."""
        contents = [_read(self._file(index)) for index in range(self.shards)]
        return [None if one is None else ShardResult.from_bytes(one) for one in contents]

    def remove(self) -> None:
        """Removes the folder; another worker may do the same at once."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:05d}.json"


class Meter:
    """Logs the progress of a split and its remaining time at intervals."""

    def __init__(self, split: str, shards: int, items_per_shard: int):
        self.split, self.shards, self.per_shard = split, shards, items_per_shard
        self.items = self.in_shard = self.done = self.skipped = 0
        self.start = self.last = time.monotonic()
        self.compiled_before = compiling.seconds()
        log.info("%s: %d shards to make, about %d items each", split, shards, items_per_shard)

    def item_done(self) -> None:
        """Counts one item; logs if the last line is old enough."""
        self.items += 1
        self.in_shard += 1
        if time.monotonic() - self.last > REPORT_SECONDS:
            self.say()

    def shard_done(self, items: int, skipped: int) -> None:
        """Counts one shard: its items, whether or not counted one by one, and the skipped ones."""
        self.done += 1
        self.items += items - self.in_shard
        self.skipped += skipped
        # The actual size of shards: tars do not follow items_per_shard.
        self.per_shard, self.in_shard = max(1, self.items / self.done), 0
        self.say()

    def say(self) -> None:
        """Logs shards, items, their rate, skips and the time left; compiling does not count."""
        self.last = time.monotonic()
        compiled = compiling.seconds() - self.compiled_before
        spent = self.last - self.start - compiled
        share = (self.done + min(1.0, self.in_shard / self.per_shard)) / self.shards
        left = spent / share - spent if share else float("nan")
        log.info(
            "%s: shard %d of %d, %d items, %.1f items/s, %d skipped, about %.0f s left%s",
            *(self.split, self.done, self.shards, self.items, self.items / max(spent, 1e-9)),
            *(self.skipped, left),
            f"; {compiling.programs()} programs, compiled in {compiled:.0f} s" if compiled else "",
        )


def json_bytes(value: Any) -> bytes:
    """JSON in UTF-8, for any text.

    UTF-8 has no lone surrogates; backslashreplace writes each as JSON's own escape.
    """
    return json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace")


def read_json(file: Path) -> dict | None:
    """The content of a JSON file; None if there is no file."""
    content = _read(file)
    return None if content is None else json.loads(content)


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
