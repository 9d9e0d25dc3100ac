"""Batches of raw pictures and clips, on which the vision tokenizer trains.

Batch n is a function of (config, n) alone: items are shuffled anew each epoch and every random
choice (window of a clip, flip) comes from a generator seeded by its place in the stream.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grain
import numpy as np

from emu3_jax.data import media
from emu3_jax.data.sources import FolderSource, RawItem

log = logging.getLogger(__name__)

# grain wants streams of a known, equal length before it zips them.
ENDLESS = 1 << 40


@dataclass(frozen=True)
class PixelConfig:
    """Which pictures and clips, how large, and how many a batch.

    root, files: folder and the jsonl files in it (layout of `sources.FolderSource`).
    image_size: pictures are cut to their centred square and resized to this side, in pixels.
    flip, reverse: half of the items are mirrored; half of the clips run backwards.
    frames, fps: length of a clip in frames; the rate it is sampled at (None: every frame).
    cache_bytes: decoded items are kept in memory up to this sum; the rest is read again each time.
    max_bad_items: unreadable items are replaced by their successor; one more than this is an error.
    """

    root: str
    files: tuple[str, ...] = ("train.jsonl",)
    image_size: int = 64
    frames: int = 8
    fps: float | None = None
    stills_per_batch: int = 32
    clips_per_batch: int = 4
    flip: bool = True
    reverse: bool = False
    seed: int = 0
    cache_bytes: int = 1 << 30
    max_bad_items: int = 0

    def __post_init__(self):
        if min(self.stills_per_batch, self.clips_per_batch) < 0 or not (
            self.stills_per_batch + self.clips_per_batch
        ):
            raise ValueError("stills_per_batch and clips_per_batch: expected a sum above zero")


class _Items:
    """Decoded uint8 items by index: stills [H,W,3], clips [T,H,W,3]."""

    def __init__(self, items: list[RawItem], config: PixelConfig):
        self._items, self._config = items, config
        self._cache: dict[int, np.ndarray] = {}
        self._cached_bytes = 0
        self._bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> np.ndarray:
        for candidate in range(index, index + len(self._items)):
            candidate %= len(self._items)
            if candidate in self._cache:
                return self._cache[candidate]
            if candidate in self._bad:
                continue
            try:
                pixels = self._read(self._items[candidate])
            except media.MediaError as error:
                self._note(candidate, error)
                continue
            if self._cached_bytes + pixels.nbytes <= self._config.cache_bytes:
                self._cache[candidate] = pixels
                self._cached_bytes += pixels.nbytes
            return pixels
        raise media.MediaError(f"{self._config.root}: not one item can be read")

    def _note(self, index: int, error: media.MediaError) -> None:
        self._bad[index] = str(error)
        if len(self._bad) > self._config.max_bad_items:
            raise media.MediaError(
                f"{error}; {len(self._bad)} unreadable items are more than max_bad_items="
                f"{self._config.max_bad_items}"
            ) from error
        log.warning("skipped: %s", error)

    def _read(self, item: RawItem) -> np.ndarray:
        size = self._config.image_size
        if item.image is not None:
            pixels = media.read_image(item.image)
        else:
            pixels, _, _ = media.read_video(item.video, self._config.fps)
            if len(pixels) < self._config.frames:
                raise media.MediaError(
                    f"{item.video}: {len(pixels)} frames are fewer than the {self._config.frames} "
                    "of a training clip"
                )
        return np.ascontiguousarray(media.resize(media.center_square(pixels), size, size))


@dataclass(frozen=True)
class _Augment:
    """A random window of a clip, perhaps backwards, and a random flip of the whole item."""

    frames: int
    flip: bool
    reverse: bool

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if pixels.ndim == 4:
            start = rng.integers(len(pixels) - self.frames + 1)
            pixels = pixels[start : start + self.frames]
        if self.flip and rng.random() < 0.5:
            pixels = pixels[..., ::-1, :]
        if self.reverse and pixels.ndim == 4 and rng.random() < 0.5:
            pixels = pixels[::-1]
        return pixels


def _find(config: PixelConfig) -> tuple[_Items, _Items]:
    stills, clips = [], []
    for name in config.files:
        source = FolderSource(Path(config.root) / name)
        for shard in range(source.num_shards):
            for item in source.items(shard):
                if item.image is not None:
                    stills.append(item)
                elif item.video is not None:
                    clips.append(item)
    return _Items(stills, config), _Items(clips, config)


def _stream(items: _Items, count: int, seed: int, config: PixelConfig) -> grain.MapDataset:
    if not len(items):
        raise ValueError(f"{config.root}: {config.files} hold none of the media a batch asks for")
    dataset = grain.MapDataset.source(items).seed(seed).shuffle().repeat()[: ENDLESS * count]
    augmented = dataset.random_map(_Augment(config.frames, config.flip, config.reverse))
    return augmented.batch(count).map(media.to_model)


class _Named:
    """Gives the zipped streams their names in a batch."""

    def __init__(self, names: tuple[str, ...]):
        self.names = names

    def __call__(self, arrays) -> dict[str, np.ndarray]:
        return dict(zip(self.names, arrays, strict=True))


def pixel_dataset(config: PixelConfig) -> grain.MapDataset:
    """Endless dataset whose element n is batch n; see `pixel_batches`."""
    stills, clips = _find(config)
    streams = {}
    if config.stills_per_batch:
        streams["stills"] = _stream(stills, config.stills_per_batch, 2 * config.seed, config)
    if config.clips_per_batch:
        streams["clips"] = _stream(clips, config.clips_per_batch, 2 * config.seed + 1, config)
    zipped = grain.experimental.ZipMapDataset(list(streams.values()))
    return zipped.map(_Named(tuple(streams)))


def pixel_batches(config: PixelConfig, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Endless iterator of batches from number `start` on, with get_state() and set_state(state).

    A batch: "stills" float32 [stills_per_batch, image_size, image_size, 3] and "clips" float32
    [clips_per_batch, frames, image_size, image_size, 3], both in [-1, 1]; a kind of which a batch
    holds none is left out. The state is a small JSON-able dict. Raises MediaError or SourceError
    that name the file.
    """
    # One thread: decoding is done once while everything fits into the cache.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    iterator = iter(pixel_dataset(config).to_iter_dataset(options))
    if start:
        iterator.set_state({"next_index": start})
    return iterator


def evaluation_pixels(config: PixelConfig) -> dict[str, np.ndarray]:
    """All items of `config.files` in file order, unflipped: float32 as in `pixel_batches`.

    Clips are cut to their first `frames` frames. Meant for splits that fit into memory.
    """
    stills, clips = _find(config)
    arrays = {"stills": [stills[i] for i in range(len(stills))]}
    arrays["clips"] = [clips[i][: config.frames] for i in range(len(clips))]
    return {name: media.to_model(np.stack(items)) for name, items in arrays.items() if items}
