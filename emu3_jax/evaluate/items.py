"""Raw items of a corpus for evaluators: those of a split, with their pixels.

As in tokenizing, a row or a file that cannot be used is left out, counted and listed.
"""

import collections
import copy
import dataclasses
import functools
import hashlib
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from emu3_jax.data import media
from emu3_jax.data.codec import vision_codec
from emu3_jax.data.sources import MEDIA, FolderSource, RawItem
from emu3_jax.data.sources.source import ALWAYS_ALLOWED, MAX_SKIPPED, too_many_skipped
from emu3_jax.train.run import distributed

# A list of more would bury the other notes.
LISTED = 20


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
    """One row of `<split>.jsonl`.

    Attributes:
      key: the row's "id".
      kind: "image" or "video".
      path: the media file.
      text: the caption.
      attributes: every other column.
      pixels: uint8 [H, W, 3] of an image, [T, H, W, 3] of a clip.
    """

    key: str
    kind: str
    path: pathlib.Path
    text: str
    attributes: dict[str, Any]
    pixels: np.ndarray


class Reader:
    """Reads items in the size that models take, and keeps count of what cannot be used.

    Of several processes each decodes a share of the files, and all get the same items.

    Attributes:
      rows: rows seen.
      skipped: where each unusable one is, and the reason.
      unread: a sentence on each split that `read_distinct` left out.
    """

    def __init__(self, config: Any = None, limits: Mapping[str, float] | None = None):
        """Takes what decides the size.

        Args:
          config: of the vision tokenizer; images and clips must hold one of its tokens. None: any
            size will do.
          limits: images and clips are resized within its "min_pixels" and "max_pixels", as in
            tokenizing; such as `Language.media` of a language model. Without, they stay as stored.
        """
        self._config, self._fit = config, None
        if limits and {"min_pixels", "max_pixels"} <= limits.keys():
            sizes = limits["min_pixels"], limits["max_pixels"]
            sizes = media.PixelLimits(*sizes, config.spatial_factor)
            self._fit = functools.partial(media.smart_resize, limits=sizes)
        self.rows, self.skipped, self.unread = 0, [], []

    def read_split(self, data: pathlib.Path, split: str, limit: int = 0) -> list[Item]:
        """Returns the items of a split that have an image or a clip, in file order.

        Args:
          data: a folder of `<split>.jsonl` files (`emu3_jax.data.sources.FolderSource`).
          split: one of its splits.
          limit: keep at most this many images and this many clips, the first; 0 for all.

        Raises:
          ValueError: there is no such split, or too many rows so far cannot be used.
        """
        chosen, counts = [], collections.Counter()

        def is_full(raw: RawItem) -> bool:
            return not raw.problem and 0 < limit <= counts[raw.kind]

        rows = self._rows_with_media(data, split, is_full)
        while share := list(itertools.islice(rows, jax.process_count())):
            read = distributed.map_shared(self._read, share)
            for raw, (pixels, problem) in zip(share, read, strict=True):
                if is_full(raw):
                    continue  # read beside the last that was wanted
                if problem:
                    self.skipped.append(f"{raw.where}: {problem}")
                    continue
                counts[raw.kind] += 1
                path = pathlib.Path(raw.image or raw.video)
                chosen.append(Item(raw.key, raw.kind, path, raw.text, raw.attributes, pixels))
        check_share(self.skipped, self.rows)
        return chosen

    def read_splits(self, data: pathlib.Path, splits: Sequence[str], limit: int = 0) -> list[Item]:
        """Returns the items of several splits in order; ValueError if there are none."""
        chosen = [item for split in splits for item in self.read_split(data, split, limit)]
        if not chosen:
            named = ", ".join(map(repr, splits))
            raise ValueError(f"{data}: split {named} holds no image and no video")
        return chosen

    def read_distinct(
        self,
        data: pathlib.Path,
        splits: Sequence[str],
        limit: int = 0,
        known: Sequence[Item] = (),
        strict: bool = True,
    ) -> Iterator[tuple[str, list[Item]]]:
        """Yields (split, those of its items that are not `known` and in no split before).

        Captions in another language are a split of the same images. A file without a usable row is
        another list, such as one of edits, and is left out with a note.

        Raises:
          ValueError: too many rows of a split, but not all, cannot be used; if not `strict`, such a
            split is left out with a note, too.
        """
        seen = {_content(item.pixels) for item in known}
        for split in splits:
            part = copy.copy(self)
            part.rows, part.skipped = 0, []
            try:
                found = part.read_split(data, split, limit)
            except ValueError as error:
                if strict and len(part.skipped) < part.rows:
                    raise
                self.unread.append(f"without the split {split}: {error}")
                continue
            self.rows += part.rows
            self.skipped += part.skipped
            distinct = {_content(item.pixels): item for item in found}
            yield split, [item for content, item in distinct.items() if content not in seen]
            seen |= distinct.keys()

    def read_images(self, data: pathlib.Path, split: str, limit: int = 0) -> list[Item]:
        """Returns the stills of a split; ValueError if it has none."""
        chosen = of_kind(self.read_split(data, split, limit), "image")
        if not chosen:
            raise ValueError(f"{pathlib.Path(data) / split}.jsonl holds no image")
        return chosen

    def read_files(self, paths: Iterable[str]) -> dict[str, np.ndarray]:
        """Returns path → pixels of image files, each read once; without those of no use.

        Raises:
          ValueError: too many files so far cannot be used.
        """
        files = [RawItem(path, image=path, where=path) for path in dict.fromkeys(paths)]
        self.rows += len(files)
        pixels = {}
        for raw, (found, problem) in zip(
            files, distributed.map_shared(self._read, files), strict=True
        ):
            if problem:
                self.skipped.append(f"{raw.where}: {problem}")
            else:
                pixels[raw.key] = found
        check_share(self.skipped, self.rows)
        return pixels

    @property
    def metrics(self) -> dict[str, int]:
        """The number of rows left out."""
        return {"items_skipped": len(self.skipped)}

    @property
    def notes(self) -> list[str]:
        """A sentence about each split and each row left out."""
        notes = self.unread + [f"left out: {one}" for one in self.skipped[:LISTED]]
        more = len(self.skipped) - LISTED
        return notes + ([f"left out: {more} more"] if more > 0 else [])

    def _rows_with_media(
        self, data: pathlib.Path, split: str, is_full: Callable[[RawItem], bool]
    ) -> Iterator[RawItem]:
        for raw in _rows(data, split):
            self.rows += 1
            if raw.problem or (raw.kind in MEDIA and not is_full(raw)):
                yield raw

    def _read(self, raw: RawItem) -> tuple[np.ndarray | None, str]:
        """The pixels of a row, or why it cannot be used."""
        try:
            if raw.problem:
                raise ValueError(raw.problem)
            if raw.kind == "image":
                pixels = media.read_image(raw.image, fit=self._fit)
            else:
                pixels, _, _ = media.read_video(raw.video, fit=self._fit)
            if self._config is not None:
                vision_codec.whole_tokens(self._config, pixels)  # raises if there is not one
        except ValueError as error:
            return None, str(error)
        return pixels, ""


def split_names(data: pathlib.Path) -> list[str]:
    """Returns the splits of a folder: the names of its .jsonl files, text-only ones included."""
    return sorted(path.stem for path in pathlib.Path(data).glob("*.jsonl"))


def check_splits(data: pathlib.Path, splits: Sequence[str]) -> None:
    """Reads the rows of each split, but no media; ValueError as from `Reader.read_split`."""
    for split in splits:
        rows = list(_rows(data, split))
        check_share([f"{raw.where}: {raw.problem}" for raw in rows if raw.problem], len(rows))


def of_kind(items: Sequence[Item], kind: str) -> list[Item]:
    """Returns the stills ("image") or the clips ("video") among items."""
    return [item for item in items if item.kind == kind]


def _content(pixels: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return pixels.shape, hashlib.sha256(pixels.tobytes()).digest()


def _rows(data: pathlib.Path, split: str) -> Iterator[RawItem]:
    path = pathlib.Path(data) / f"{split}.jsonl"
    if not path.is_file():
        known = ", ".join(split_names(data)) or "none"
        raise ValueError(f"{data} has no split {split!r} ({path.name}); splits there: {known}")
    source = FolderSource(path)
    for shard in range(source.num_shards):
        yield from source.items(shard)


def check_share(skipped: Sequence[str], rows: int) -> None:
    """ValueError if too many of `rows` rows cannot be used; `skipped` has a sentence on each."""
    if too_many_skipped(len(skipped), rows):
        raise ValueError(
            f"{len(skipped)} of {rows} rows cannot be used, at most {100 * MAX_SKIPPED:g} % "
            f"may be left out (or {ALWAYS_ALLOWED}); the first: {skipped[0]}"
        )
