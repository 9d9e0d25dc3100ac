"""Images and clips of corpora, decoded, by number; kept in memory up to a limit."""

import logging

import numpy as np

from emu3_jax.data import media
from emu3_jax.data.sources import RawItem, SourceError, Stored, open_source

log = logging.getLogger(__name__)


class DecodedItems:
    """The uint8 images [H,W,3] and clips [T,H,W,3] of corpora.

    root, files: folder, and the corpora relative to it (`sources.open_source`).
    short_side: larger items are scaled down to a short side of this many pixels.
    cache_bytes: decoded items are kept up to this sum; the others are read again each time.
    max_bad_items: unreadable items, and clips too short for the request, are replaced by their
      successor; one more than this raises a MediaError that names it.
    """

    def __init__(
        self,
        root: str,
        files: tuple[str, ...],
        short_side: int,
        cache_bytes: int = 1 << 30,
        max_bad_items: int = 0,
    ):
        self._root, self._short_side = root, short_side
        self._cache_bytes, self._max_bad_items = cache_bytes, max_bad_items
        self._items: dict[str, list[RawItem]] = {"image": [], "video": []}
        self._cache: dict[tuple, np.ndarray] = {}
        self._cached_bytes = 0
        self._bad: dict[tuple, str] = {}
        for name in files:
            source = open_source(name, root)
            for shard in range(source.num_shards):
                try:
                    for item in source.listed(shard):
                        self._add(item)
                except SourceError as error:  # the rest of a damaged tar
                    self._note((name, shard), media.MediaError(str(error)))

    def _add(self, item: RawItem) -> None:
        if item.problem:
            self._note((item.where,), media.MediaError(f"{item.where}: {item.problem}"))
        for source, items in self._items.items():
            if getattr(item, source) is not None:
                items.append(item)

    def count(self, source: str) -> int:
        """How many items there are of a source, "image" or "video"."""
        return len(self._items[source])

    def get(
        self, source: str, index: int, square: int | None = None, frames: int = 1
    ) -> np.ndarray:
        """Item `index` of a source, or the next usable one.

        Args:
          source: "image" or "video".
          index: below `count(source)`.
          square: side of the centred square to return; None: the whole item.
          frames: minimum number of frames of a clip; it is returned whole.

        Raises:
          MediaError: more than `max_bad_items` items are bad, or all of them.
        """
        count = len(self._items[source])
        for candidate in range(index, index + count):
            key = (source, candidate % count)
            if key in self._bad:
                continue
            try:
                pixels = self._cached(key, square)
            except media.MediaError as error:
                self._note(key, error)
                continue
            if source == "image" or len(pixels) >= frames:
                return pixels
            self._too_short(key, len(pixels), frames)
        raise media.MediaError(f"{self._root}: no {source} can be used")

    def _too_short(self, key: tuple[str, int], found: int, wanted: int) -> None:
        if (*key, wanted) in self._bad:
            return
        message = f"{found} frames are fewer than the {wanted} that a training clip spans"
        self._note((*key, wanted), media.MediaError(f"{self._name(key)}: {message}"))

    def _name(self, key: tuple[str, int]) -> str:
        """The item in messages: its file, or its place in a larger one."""
        source, index = key
        item = self._items[source][index]
        stored = getattr(item, source)
        return stored if isinstance(stored, str) else item.where

    def _cached(self, key: tuple[str, int], square: int | None) -> np.ndarray:
        pixels = self._cache.get((key, square))
        if pixels is None:
            pixels = self._read(key, square)
            if self._cached_bytes + pixels.nbytes <= self._cache_bytes:
                self._cache[key, square] = pixels
                self._cached_bytes += pixels.nbytes
        return pixels

    def _read(self, key: tuple[str, int], square: int | None) -> np.ndarray:
        pixels = self._decoded(key)
        if square is not None:
            pixels = media.resize(media.center_square(pixels), square, square)
        else:
            height, width = pixels.shape[-3:-1]
            scale = min(1.0, self._short_side / min(height, width))
            pixels = media.resize(pixels, round(height * scale), round(width * scale))
        return np.ascontiguousarray(pixels)

    def _decoded(self, key: tuple[str, int]) -> np.ndarray:
        source, index = key
        found, name = getattr(self._items[source][index], source), self._name(key)
        if isinstance(found, Stored):
            try:
                found = found.read()
            except (SourceError, OSError) as error:
                raise media.MediaError(f"{name}: {error}") from error
        if isinstance(found, np.ndarray):
            return found
        if source == "image":
            return media.read_image(found, name)
        return media.read_video(found, name=name)[0]

    def _note(self, key: tuple, error: media.MediaError) -> None:
        self._bad[key] = str(error)
        if len(self._bad) > self._max_bad_items:
            raise media.MediaError(
                f"{error}; {len(self._bad)} unusable items are more than max_bad_items="
                f"{self._max_bad_items}"
            ) from error
        log.warning("skipped: %s", error)
