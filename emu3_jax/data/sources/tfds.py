"""Datasets of tensorflow-datasets prepared on this machine; nothing is downloaded."""

import math
import os
from collections.abc import Iterator, Mapping

import numpy as np

from emu3_jax.data.sources.source import RawItem, SourceError
from emu3_jax.foreign import failures_as

MEDIA_KEYS = ("image", "video")
# Features that state the frames per second of a clip.
RATE_KEYS = ("fps", "frame_rate")
TEXT_KEYS = ("caption", "captions", "text", "title", "label")


class TfdsSource:
    """A prepared TFDS dataset, read by index (its files must be ArrayRecord).

    The image or clip is the feature "image" or "video". The text is the first of `TEXT_KEYS` that
    exists: the first of several captions, the name of a class label. Other plain features become
    attributes; one of `RATE_KEYS` is the frame rate of a clip. The data directory is TFDS's own
    (TFDS_DATA_DIR or ~/tensorflow_datasets).
    """

    def __init__(self, name: str, split: str, items_per_shard: int = 512):
        import tensorflow_datasets as tfds  # optional and slow to import

        self.name = name.replace("/", "_").replace(":", "_")
        where = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
        try:
            builder = tfds.builder(name, data_dir=where)
            self._data = builder.as_data_source(split=split)
        except Exception as error:  # TFDS raises errors of its own and of its readers
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise SourceError(
                f"tfds:{name}: cannot be read from {where} as split {split!r} ({reason}); prepare "
                f"it there first with file_format=array_record"
            ) from error
        self._features, self._per_shard = builder.info.features, items_per_shard
        if not len(self._data):
            raise SourceError(f"tfds:{name}:{split}: the corpus is empty")

    @property
    def num_shards(self) -> int:
        """Examples over examples per shard, rounded up."""
        return -(-len(self._data) // self._per_shard)

    def items(self, shard: int) -> Iterator[RawItem]:
        """The examples of one shard, media as uint8 arrays."""
        first = shard * self._per_shard
        for index in range(first, min(first + self._per_shard, len(self._data))):
            where = f"tfds:{self.name}:{index}"
            try:
                with failures_as(SourceError):
                    item = self._item(where, self._data[index])
            except SourceError as error:
                item = RawItem(where, where=where, problem=str(error))
            yield item

    def _item(self, where: str, example: Mapping) -> RawItem:
        text_key = next((key for key in TEXT_KEYS if key in example), None)
        if text_key is None:
            wanted = ", ".join(TEXT_KEYS)
            return RawItem(where, where=where, problem=f"has none of the features {wanted}")
        used = (*MEDIA_KEYS, text_key)
        attributes = {k: _plain(v) for k, v in example.items() if k not in used and _is_plain(v)}
        fields = {kind: _pixels(kind, example[kind]) for kind in MEDIA_KEYS if kind in example}
        text = self._text(text_key, example[text_key])
        fps = next((_rate(example[key]) for key in RATE_KEYS if key in example), 0.0)
        return RawItem(where, text, **fields, attributes=attributes, fps=fps, where=where)

    def _text(self, key: str, value) -> str:
        if isinstance(value, Mapping):  # captions as a sequence of features
            value = next(iter(value.values()))
        if isinstance(value, (list, tuple)) or isinstance(value, np.ndarray) and value.ndim:
            value = value[0]
        if isinstance(value, bytes):
            return value.decode()
        name = getattr(self._features[key], "int2str", None)
        return name(int(value)) if name and not isinstance(value, str) else str(value)


def _pixels(kind: str, value) -> np.ndarray:
    """uint8 [..., H, W, 3]; 16 bits are scaled as by `media.read_image`, grey becomes RGB."""
    pixels = np.asarray(value)
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if pixels.dtype != np.uint8 or pixels.ndim < 3 or pixels.shape[-1] not in (1, 3):
        raise ValueError(
            f'the feature "{kind}" must be pixels of 8 or 16 bits with 1 or 3 channels, found '
            f"{pixels.dtype} {pixels.shape}"
        )
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def _rate(value) -> float:
    """Frames per second as the example states them; 0 (unknown) if the value is not a rate."""
    rate = float(value) if isinstance(value, (int, float, np.number)) else 0.0
    return rate if 0 < rate < math.inf else 0.0


def _is_plain(value) -> bool:
    return isinstance(value, (str, bytes, int, float, np.generic))


def _plain(value):
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.item() if isinstance(value, np.generic) else value
