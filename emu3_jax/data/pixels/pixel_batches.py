"""Batches of raw images and clips, on which the vision tokenizer trains.

Batch n is a function of (config, n) alone, whatever the number of processes: each group takes its
items in an order that is reshuffled each epoch, and every random choice (crop, window of a clip,
frame rate, flip) comes from a generator seeded by the item's position in that order.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import grain
import numpy as np

from emu3_jax.config import check_choice
from emu3_jax.data import media
from emu3_jax.data.batches import Batches
from emu3_jax.data.pixels import crops
from emu3_jax.data.pixels.decoded import DecodedItems

KINDS = ("stills", "clips", "pans")
CROPS = ("centre", "random")
# grain requires the length of a stream.
ENDLESS = 1 << 40


@dataclass(frozen=True)
class PixelGroup:
    """Items of one kind, size and length; each batch holds the same number of them.

    Attributes:
      name: key in the batch and in the metrics ("stills", "clips_32", "stills_128").
      kind: "stills"; "clips", made of the corpus's clips; "pans", clips made of its stills by
        moving a window over them (`crops.pan_boxes`), for corpora without video.
      size: height and width in pixels.
      count: items per batch; 0 leaves the group out.
      frames: frames of a clip or pan, at least 2; 1 for stills.
    """

    name: str
    kind: str
    size: int
    count: int
    frames: int = 1

    def __post_init__(self):
        where = f"group {self.name!r}"
        if not self.name.isidentifier():
            raise ValueError(f"{where}: a group's name must be letters, digits and underscores")
        check_choice(f"{where}: kind", self.kind, KINDS)
        if self.size < 1 or self.count < 0:
            raise ValueError(
                f"{where}: size must be above 0 and count not below 0, found {self.size} and "
                f"{self.count}"
            )
        if self.kind == "stills" and self.frames != 1:
            raise ValueError(f"{where}: stills have 1 frame, found frames={self.frames}")
        if self.kind != "stills" and self.frames < 2:
            raise ValueError(f"{where}: {self.kind} need frames >= 2, found {self.frames}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the group's array in the global batch."""
        frames = () if self.kind == "stills" else (self.frames,)
        return (self.count, *frames, self.size, self.size, 3)

    @property
    def source(self) -> str:
        """The files it is made of: "image" or "video" (the key in their rows)."""
        return "video" if self.kind == "clips" else "image"


@dataclass(frozen=True)
class PixelConfig:
    """Which images and clips a batch holds, how large and how many.

    Every batch holds every group. Sizes and lengths could also alternate between batches. Together
    they make one compiled step of fixed shapes, every update has the same mixture, and processes
    need not agree on the next size.

    Attributes:
      root: folder that the paths in `files` are relative to.
      files: corpora as in tokenizing (`emu3_jax.data.sources.open_source`): jsonl files,
        "webdataset:PATTERN" (plain tars) or "tfds:NAME:SPLIT".
      groups: contents of a batch, one section for each kind, size and length.
      crop: "centre", the centred square as large as the short side; "random", a square of
        `min_crop` to 1 of the short side anywhere in the image (the same for all frames of a clip).
        Pans choose their windows themselves.
      min_crop: least side of a random crop as a share of the short side.
      flip: half of the items are mirrored.
      reverse: half of the clips and pans run backwards.
      strides: a training clip takes every k-th frame, k drawn from those that its length allows.
      seed: seed of the order of items and of every other random choice.
      cache_bytes: decoded items are kept in memory up to this sum in bytes, at the size that the
        groups need; the others are read again each time.
      max_bad_items: unreadable items, and clips too short for a group, are replaced by their
        successor; more items than this are an error.
    """

    root: str
    files: tuple[str, ...] = ("train.jsonl",)
    groups: tuple[PixelGroup, ...] = (
        PixelGroup("stills", "stills", 64, 32),
        PixelGroup("clips", "clips", 64, 4, 8),
    )
    crop: str = "centre"
    min_crop: float = 1.0
    flip: bool = True
    reverse: bool = False
    strides: tuple[int, ...] = (1,)
    seed: int = 0
    cache_bytes: int = 1 << 30
    max_bad_items: int = 0

    def __post_init__(self):
        names = [group.name for group in self.groups]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"groups: names must differ, {repeated[0]!r} appears twice")
        if not self.active:
            raise ValueError("groups: at least one must have a count above 0")
        check_choice("crop", self.crop, CROPS)
        if not 0 < self.min_crop <= 1:
            raise ValueError(f"min_crop must lie in (0, 1], found {self.min_crop}")
        if self.crop == "centre" and self.min_crop != 1:
            raise ValueError(f"min_crop={self.min_crop} goes with crop='random' only")
        if not self.strides or min(self.strides) < 1:
            raise ValueError(f"strides must be numbers of at least 1, found {self.strides}")
        for name in ("seed", "cache_bytes", "max_bad_items"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")

    @property
    def active(self) -> tuple[PixelGroup, ...]:
        """The groups with a count above 0."""
        return tuple(group for group in self.groups if group.count)


class _Order:
    """The item at a position of an endless stream of `count` items: every epoch a permutation.

    grain's own shuffle needs no memory, but takes milliseconds per item if there are few items.
    """

    def __init__(self, count: int, seed: int):
        self._count, self._seed, self._epoch = count, seed, None

    def at(self, position: int) -> int:
        epoch, index = divmod(position, self._count)
        if epoch != self._epoch:
            rng = np.random.default_rng((self._seed, epoch))
            self._epoch, self._permutation = epoch, rng.permutation(self._count)
        return int(self._permutation[index])


class _BatchMaker:
    """Number of a batch -> its arrays, or the rows of them that this process reads."""

    def __init__(self, config: PixelConfig, rows: dict[str, range]):
        self._config, self._rows = config, rows
        self._items = DecodedItems(
            config.root, config.files, _short_side(config), config.cache_bytes, config.max_bad_items
        )
        self._orders, self._seeds = {}, {}
        for group in config.active:
            count = self._items.count(group.source)
            if not count:
                raise ValueError(
                    f"{config.root}: {config.files} hold no {group.source}, which the group "
                    f"{group.name!r} is made of"
                )
            self._seeds[group.name] = _seed(config, group)
            self._orders[group.name] = _Order(count, self._seeds[group.name])

    def __call__(self, batch: int) -> dict[str, np.ndarray]:
        arrays = {}
        for group in self._config.active:
            positions = [batch * group.count + row for row in self._rows[group.name]]
            items = [self._item(group, position) for position in positions]
            arrays[group.name] = media.to_model(np.stack(items))
        return arrays

    def _item(self, group: PixelGroup, position: int) -> np.ndarray:
        """The item at a position of the group's order, as uint8 of the group's shape."""
        config = self._config
        # The 1 separates it from the generators of `_Order`.
        rng = np.random.default_rng((self._seeds[group.name], position, 1))
        square = config.crop == "centre" and group.kind != "pans"
        pixels = self._items.get(
            group.source,
            self._orders[group.name].at(position),
            square=group.size if square else None,
            frames=(group.frames - 1) * min(config.strides) + 1,
        )
        height, width = pixels.shape[-3:-1]
        if group.kind == "clips":
            pixels = _window(pixels, group.frames, config.strides, rng)
        if group.kind == "pans":
            boxes = crops.pan_boxes(height, width, group.frames, rng)
            pixels = crops.cut(pixels, boxes, group.size)
        elif not square:
            box = crops.random_box(height, width, config.min_crop, rng)
            pixels = crops.cut(pixels, box, group.size)
        if config.flip and rng.random() < 0.5:
            pixels = pixels[..., ::-1, :]
        if config.reverse and pixels.ndim == 4 and rng.random() < 0.5:
            pixels = pixels[::-1]
        return pixels


def _seed(config: PixelConfig, group: PixelGroup) -> int:
    """Seed of a group, from its name: its items do not depend on the other groups."""
    entropy = (config.seed, zlib.crc32(group.name.encode()))
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _short_side(config: PixelConfig) -> int:
    """Short side, in pixels, above which no group uses the additional resolution."""
    smallest = {"pans": crops.PAN_SIDES[0]}
    needs = [group.size / smallest.get(group.kind, config.min_crop) for group in config.active]
    return math.ceil(max(needs))


def _window(
    clip: np.ndarray, frames: int, strides: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    """`frames` evenly spaced frames of a clip, from anywhere in it."""
    spans = {stride: (frames - 1) * stride + 1 for stride in strides}
    stride = int(rng.choice([stride for stride, span in spans.items() if span <= len(clip)]))
    start = rng.integers(len(clip) - spans[stride] + 1)
    return clip[start : start + spans[stride] : stride]


class PixelIterator(Batches):
    """Endless batches from number `start` on, prefetched by a thread; see `pixel_batches`."""

    def __init__(self, config: PixelConfig, start: int, rows: dict[str, range]):
        self.share = {group.name: (rows[group.name][0], group.count) for group in config.active}
        dataset = grain.MapDataset.range(ENDLESS).map(_BatchMaker(config, rows))
        # One thread: decoding is done once while everything fits into the cache.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        self._iterator = iter(dataset.to_iter_dataset(options))
        if start:
            self.set_state({"next_index": start})

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._iterator)

    def get_state(self) -> dict:
        """The position after the last batch, the same in every process."""
        return self._iterator.get_state()

    def set_state(self, state: dict) -> None:
        """Continues after the batch at which `state` was taken, with any number of processes."""
        self._iterator.set_state(state)


def pixel_batches(
    config: PixelConfig, start: int = 0, rows: Callable[[int], range] = range
) -> PixelIterator:
    """Endless iterator of batches from number `start` on.

    Args:
      config: contents of a batch.
      start: number of the first batch.
      rows: maps the number of rows of a group to those that this process reads; default: all. A
        task passes `functools.partial(sharding.rows_here, mesh)`.

    Returns:
      Iterator over {group.name: float32 [rows, size, size, 3]; for clips and pans
      [rows, frames, size, size, 3]}, in [-1, 1].

    Raises:
      ValueError: rows outside the batch, or files that hold nothing for a group.
      MediaError, SourceError: a file that cannot be read; the sentence names it.
    """
    mine = {group.name: rows(group.count) for group in config.active}
    for group in config.active:
        wanted = mine[group.name]
        if not len(wanted) or min(wanted) < 0 or max(wanted) >= group.count:
            raise ValueError(
                f"{wanted} are no rows of the group {group.name!r}, of which a batch has "
                f"{group.count}"
            )
    return PixelIterator(config, start, mine)
