"""Corpora of preferences: json, jsonl or parquet files of pairs or rankings of images."""

import glob
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emu3_jax.data.sources import preference_rows
from emu3_jax.data.sources.row_files import Row, open_rows
from emu3_jax.data.sources.source import RawItem, SourceError
from emu3_jax.files import inside

# Keys whose value names the row; else it is named by where it stands.
ID_KEYS = ("id", "ranking_id", "prompt_id", "uid")


class PreferenceSource:
    """Files of rows in one of the layouts of `preference_rows`.

    Args:
      pattern: a file, or a glob of files; they are read by name. Paths of images are relative to
        the folder of their file.
      pairs: of a ranking of several images, `best_worst` or `all` pairs.
      items_per_shard: rows of a shard; a row may become several items.
    """

    def __init__(self, pattern: str, pairs: str = preference_rows.BEST_WORST, items_per_shard=512):
        if pairs not in preference_rows.PAIRS:
            known = " or ".join(preference_rows.PAIRS)
            raise SourceError(f"{pattern}#{pairs}: the pairs must be {known}, found {pairs!r}")
        paths = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        if not paths:
            raise SourceError(f"{pattern}: the corpus is empty; no file matches")
        self.name = Path(paths[0]).stem if len(paths) == 1 else Path(paths[0]).parent.name
        self._pairs = pairs
        files = [(Path(path), open_rows(path, items_per_shard)) for path in paths]
        self._shards = [(path, file, i) for path, file in files for i in range(file.num_shards)]

    @property
    def num_shards(self) -> int:
        """Of all files together."""
        return len(self._shards)

    def items(self, shard: int) -> Iterator[RawItem]:
        """The pairs of the rows of one shard."""
        path, file, number = self._shards[shard]
        for row in file.rows(number):
            yield from self._items(path.parent, row)

    def listed(self, shard: int) -> Iterator[RawItem]:
        """Raises SourceError: nothing but preferences is learnt from pairs."""
        raise SourceError(f"{self._shards[shard][0]}: holds preferences, expected images or clips")

    def _items(self, folder: Path, row: Row) -> Iterator[RawItem]:
        if row.problem:
            yield RawItem(row.where, where=row.where, problem=row.problem)
            return
        if not isinstance(row.value, dict):
            problem = f"expected an object, found a {type(row.value).__name__}"
            yield RawItem(row.where, where=row.where, problem=problem)
            return
        key = next((str(row.value[key]) for key in ID_KEYS if _is_plain(row.value.get(key))), "")
        key = key or row.where.rpartition("/")[2]
        try:
            layout, pairs = preference_rows.read(row.value, self._pairs)
        except ValueError as error:
            yield RawItem(key, where=row.where, problem=str(error))
            return
        about = {name: value for name, value in row.value.items() if _is_plain(value)}
        for name in ("prompt", "caption", "chosen", "rejected", *ID_KEYS):
            about.pop(name, None)
        origin = {"corpus": self.name, "layout": layout}
        if "source" in about:
            origin["stated"] = about["source"]
        for pair in pairs:
            one = f"{key}/{pair.name}" if pair.name else key
            yield _item(one, row.where, folder, pair, about | {"source": origin})


def _item(
    key: str, where: str, folder: Path, pair: preference_rows.Pair, about: dict[str, Any]
) -> RawItem:
    try:
        if pair.problem:
            raise SourceError(pair.problem)
        sides = (pair.chosen, pair.rejected)
        images = tuple(
            image if isinstance(image, bytes) else str(inside(folder, image))
            for image, _, _ in sides
        )
    except ValueError as error:
        return RawItem(key, where=where, problem=str(error))
    scores = {"chosen": pair.chosen.scores, "rejected": pair.rejected.scores}
    if any(scores.values()):
        about |= {"scores": scores}
    return RawItem(key, pair.chosen.prompt, pair=images, attributes=about, where=where)


def _is_plain(value: Any) -> bool:
    """Whether it can be stored as an attribute, and says something."""
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return is_number or isinstance(value, str)
