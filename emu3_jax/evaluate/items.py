"""Raw items of a corpus for evaluators: those of a split, with their pixels."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from emu3_jax.data import media
from emu3_jax.data.sources import FolderSource


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


def split_names(data: pathlib.Path) -> list[str]:
    """Returns the splits of a folder: the names of its .jsonl files, text-only ones included."""
    return sorted(path.stem for path in pathlib.Path(data).glob("*.jsonl"))


def read_split(data: pathlib.Path, split: str, limit: int = 0) -> list[Item]:
    """Returns the items of a split that have an image or a clip, in file order.

    Args:
      data: a folder of `<split>.jsonl` files (`emu3_jax.data.sources.FolderSource`).
      split: one of its splits.
      limit: keep at most this many images and this many clips, the first; 0 for all.

    Raises:
      ValueError: there is no such split, or a row cannot be read.
    """
    path = pathlib.Path(data) / f"{split}.jsonl"
    if not path.is_file():
        known = ", ".join(split_names(data)) or "none"
        raise ValueError(f"{data} has no split {split!r} ({path.name}); splits there: {known}")
    source = FolderSource(path)
    chosen, counts = [], {"image": 0, "video": 0}
    for raw in (raw for shard in range(source.num_shards) for raw in source.items(shard)):
        kind = "image" if raw.image else "video" if raw.video else None
        if kind is None or (limit and counts[kind] >= limit):
            continue
        counts[kind] += 1
        media_path = pathlib.Path(raw.image or raw.video)
        chosen.append(Item(raw.key, kind, media_path, raw.text, raw.attributes))
    return chosen


def read_splits(data: pathlib.Path, splits: Sequence[str], limit: int = 0) -> list[Item]:
    """Returns the items of several splits in order; ValueError if there are none."""
    chosen = [item for split in splits for item in read_split(data, split, limit)]
    if not chosen:
        named = ", ".join(map(repr, splits))
        raise ValueError(f"{data}: split {named} holds no image and no video")
    return chosen


def check_splits(data: pathlib.Path, splits: Sequence[str]) -> None:
    """Reads the first item of each split; errors as `read_split`."""
    for split in splits:
        read_split(data, split, limit=1)


def of_kind(items: Sequence[Item], kind: str) -> list[Item]:
    """Returns the stills ("image") or the clips ("video") among items."""
    return [item for item in items if item.kind == kind]


def read_images(data: pathlib.Path, split: str, limit: int = 0) -> list[Item]:
    """Returns the stills of a split; ValueError if it has none."""
    chosen = of_kind(read_split(data, split, limit), "image")
    if not chosen:
        raise ValueError(f"{pathlib.Path(data) / split}.jsonl holds no image")
    return chosen
