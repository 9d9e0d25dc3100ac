"""Datasets of tensorflow-datasets that are prepared on this machine; nothing is downloaded."""

import os
from collections.abc import Iterator, Mapping

import numpy as np

from emu3_jax.data.sources import RawItem, SourceError

MEDIA_KEYS = ("image", "video")
TEXT_KEYS = ("caption", "captions", "text", "title", "label")


class TfdsSource:
    """A prepared TFDS dataset, read by index (its files must be ArrayRecord).

    The picture or clip is the feature "image" or "video", the text the first of `TEXT_KEYS` that
    exists: of several captions the first, of a class label its name. Other plain features become
    attributes. The data directory is TFDS's own (TFDS_DATA_DIR or ~/tensorflow_datasets).
    """

    def __init__(self, name: str, split: str, items_per_shard: int = 512):
        import tensorflow_datasets as tfds  # optional and slow to import

        self.name = name.replace("/", "_").replace(":", "_")
        where = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
        try:
            builder = tfds.builder(name, data_dir=where)
            self._data = builder.as_data_source(split=split)
        except Exception as error:  # TFDS raises its own, and those of its readers
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
            yield self._item(index, self._data[index])

    def _item(self, index: int, example: Mapping) -> RawItem:
        where = f"tfds:{self.name}:{index}"
        fields = {}
        for kind in MEDIA_KEYS:
            if kind in example:
                pixels = np.asarray(example[kind], np.uint8)
                grey = pixels.shape[-1] == 1
                fields[kind] = np.repeat(pixels, 3, axis=-1) if grey else pixels
        text_key = next((key for key in TEXT_KEYS if key in example), None)
        if text_key is None:
            wanted = ", ".join(TEXT_KEYS)
            return RawItem(where, where=where, problem=f"has none of the features {wanted}")
        used = (*MEDIA_KEYS, text_key)
        attributes = {k: _plain(v) for k, v in example.items() if k not in used and _is_plain(v)}
        text = self._text(text_key, example[text_key])
        return RawItem(where, text, **fields, attributes=attributes, where=where)

    def _text(self, key: str, value) -> str:
        if isinstance(value, Mapping):  # captions as a sequence of features
            value = next(iter(value.values()))
        if isinstance(value, (list, tuple)) or isinstance(value, np.ndarray) and value.ndim:
            value = value[0]
        if isinstance(value, bytes):
            return value.decode()
        name = getattr(self._features[key], "int2str", None)
        return name(int(value)) if name and not isinstance(value, str) else str(value)


def _is_plain(value) -> bool:
    return isinstance(value, (str, bytes, int, float, np.generic))


def _plain(value):
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.item() if isinstance(value, np.generic) else value
