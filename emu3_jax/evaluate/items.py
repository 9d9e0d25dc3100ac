"""Raw items of a corpus for evaluators: those of a split, with their pixels.

As in tokenizing, a row or a file that cannot be used is left out, counted and listed.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from emu3_jax.data import media
from emu3_jax.data.codec import vision_codec
from emu3_jax.data.sources import FolderSource, RawItem
from emu3_jax.data.sources.source import ALWAYS_ALLOWED, MAX_SKIPPED, too_many_skipped

# A list of more would bury the other notes.
LISTED = 20


@dataclasses.dataclass(frozen=True)
class Item:
    """One row of `<split>.jsonl`.

    Attributes:
      key: the row's "id".
      kind: "image" or "video".
      path: the media file.
      text: the caption.
      attributes: every other column.
    """

    key: str
    kind: str
    path: pathlib.Path
    text: str
    attributes: dict[str, Any]

    @functools.cached_property
    def pixels(self) -> np.ndarray:
        """uint8 [H, W, 3] of an image, [T, H, W, 3] of a clip."""
        if self.kind == "image":
            return media.read_image(self.path)
        return media.read_video(self.path)[0]


class Usable:
    """Reads pixels in the size that models take, and keeps count of what cannot be used.

    Attributes:
      rows: rows seen.
      skipped: where each unusable one is, and the reason.
    """

    def __init__(self, config: Any, limits: Mapping[str, float] | None = None):
        """Takes what decides the size.

        Args:
          config: of the vision tokenizer.
          limits: images and clips are resized within its "min_pixels" and "max_pixels", as in
            tokenizing; such as `Language.media` of a language model. Without, they stay as stored.
        """
        self._config, self._limits = config, None
        if limits and {"min_pixels", "max_pixels"} <= limits.keys():
            sizes = limits["min_pixels"], limits["max_pixels"]
            self._limits = media.PixelLimits(*sizes, config.spatial_factor)
        self.rows, self.skipped = 0, []

    def takes(self, raw: RawItem, item: Item) -> bool:
        """Reads the pixels of an item; returns whether it can be used."""
        try:
            if raw.problem:
                raise ValueError(raw.problem)
            if self._limits:
                size = media.smart_resize(*item.pixels.shape[-3:-1], self._limits)
                item.__dict__["pixels"] = media.resize(item.pixels, *size)
            vision_codec.whole_tokens(self._config, item.pixels)  # raises if there is not one
        except ValueError as error:
            self.skipped.append(f"{raw.where}: {error}")
            return False
        return True

    def check(self) -> None:
        """Raises ValueError if too many rows so far cannot be used."""
        _check_share(self.skipped, self.rows)

    @property
    def metrics(self) -> dict[str, int]:
        """The number of rows left out."""
        return {"items_skipped": len(self.skipped)}

    @property
    def notes(self) -> list[str]:
        """A sentence about each row left out."""
        notes = [f"left out: {one}" for one in self.skipped[:LISTED]]
        more = len(self.skipped) - LISTED
        return notes + ([f"left out: {more} more"] if more > 0 else [])


def split_names(data: pathlib.Path) -> list[str]:
    """Returns the splits of a folder: the names of its .jsonl files, text-only ones included."""
    return sorted(path.stem for path in pathlib.Path(data).glob("*.jsonl"))


def read_split(
    data: pathlib.Path, split: str, limit: int = 0, usable: Usable | None = None
) -> list[Item]:
    """Returns the items of a split that have an image or a clip, in file order.

    Args:
      data: a folder of `<split>.jsonl` files (`emu3_jax.data.sources.FolderSource`).
      split: one of its splits.
      limit: keep at most this many images and this many clips, the first; 0 for all.
      usable: reads the pixels and leaves out what cannot be used. None: pixels are read when asked
        for, as stored, and every row must be readable.

    Raises:
      ValueError: there is no such split, a row cannot be read, or too many cannot be used.
    """
    chosen, counts = [], {"image": 0, "video": 0}
    for raw in _rows(data, split):
        if usable:
            usable.rows += 1
        elif raw.problem:
            raise ValueError(f"{raw.where}: {raw.problem}")
        kind = "video" if raw.video else "image"
        if not raw.problem and (raw.kind != kind or (limit and counts[kind] >= limit)):
            continue
        path = pathlib.Path(raw.image or raw.video or "")
        item = Item(raw.key, kind, path, raw.text, raw.attributes)
        if usable is None or usable.takes(raw, item):
            counts[kind] += 1
            chosen.append(item)
    if usable:
        usable.check()
    return chosen


def _rows(data: pathlib.Path, split: str) -> Iterator[RawItem]:
    path = pathlib.Path(data) / f"{split}.jsonl"
    if not path.is_file():
        known = ", ".join(split_names(data)) or "none"
        raise ValueError(f"{data} has no split {split!r} ({path.name}); splits there: {known}")
    source = FolderSource(path)
    for shard in range(source.num_shards):
        yield from source.items(shard)


def read_splits(
    data: pathlib.Path, splits: Sequence[str], limit: int = 0, usable: Usable | None = None
) -> list[Item]:
    """Returns the items of several splits in order; ValueError if there are none."""
    chosen = [item for split in splits for item in read_split(data, split, limit, usable)]
    if not chosen:
        named = ", ".join(map(repr, splits))
        raise ValueError(f"{data}: split {named} holds no image and no video")
    return chosen


def check_splits(data: pathlib.Path, splits: Sequence[str]) -> None:
    """Reads the rows of each split, but no media; ValueError as from `read_split`."""
    for split in splits:
        rows = list(_rows(data, split))
        _check_share([f"{raw.where}: {raw.problem}" for raw in rows if raw.problem], len(rows))


def _check_share(skipped: Sequence[str], rows: int) -> None:
    if too_many_skipped(len(skipped), rows):
        raise ValueError(
            f"{len(skipped)} of {rows} rows cannot be used, at most {100 * MAX_SKIPPED:g} % "
            f"may be left out (or {ALWAYS_ALLOWED}); the first: {skipped[0]}"
        )


def of_kind(items: Sequence[Item], kind: str) -> list[Item]:
    """Returns the stills ("image") or the clips ("video") among items."""
    return [item for item in items if item.kind == kind]


def read_images(
    data: pathlib.Path, split: str, limit: int = 0, usable: Usable | None = None
) -> list[Item]:
    """Returns the stills of a split; ValueError if it has none."""
    chosen = of_kind(read_split(data, split, limit, usable), "image")
    if not chosen:
        raise ValueError(f"{pathlib.Path(data) / split}.jsonl holds no image")
    return chosen
