"""Datasets of tensorflow-datasets prepared on this machine; nothing is downloaded."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from emu3_jax.data.sources.caption_values import CAPTION_KEYS, caption_text
from emu3_jax.data.sources.source import MEDIA, RawItem, SourceError, Stored, one_medium
from emu3_jax.foreign import failures_as, optional

# Features that state the frames per second of a clip.
RATE_KEYS = ("fps", "frame_rate")


class TfdsSource:
    """A prepared TFDS dataset, read by index (its files must be ArrayRecord).

    The image or clip is the feature "image" or "video". The text is the feature that `text_feature`
    chooses, or `text` names, such as "captions/text": the first of several captions, the name of a
    class label. Other plain features become attributes; one of `RATE_KEYS` is the frame rate of a
    clip. The data directory is TFDS's own (TFDS_DATA_DIR or ~/tensorflow_datasets).
    """

    def __init__(self, name: str, split: str, items_per_shard: int = 512, text: str = ""):
        tfds = optional(  # slow to import
            "tensorflow_datasets", f"tfds:{name}", "-r requirements-tfds.txt"
        )
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
        self._per_shard = items_per_shard
        features = builder.info.features
        self._text_path, self._label = text_feature(features, f"tfds:{name}", text)
        self._shown = list(one_medium({kind: kind for kind in MEDIA if kind in features}))
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

    def listed(self, shard: int) -> Iterator[RawItem]:
        """The examples of one shard, not yet read: which feature each shows, and no text."""
        first = shard * self._per_shard
        for index in range(first, min(first + self._per_shard, len(self._data))):
            where = f"tfds:{self.name}:{index}"
            shown = {kind: Stored(partial(self._medium, kind, index)) for kind in self._shown}
            yield RawItem(where, **shown, where=where)

    def _medium(self, kind: str, index: int) -> np.ndarray:
        with failures_as(SourceError):
            return _pixels(kind, self._data[index][kind])

    def _item(self, where: str, example: Mapping) -> RawItem:
        used = (*MEDIA, *self._text_path[:1])
        attributes = {k: _plain(v) for k, v in example.items() if k not in used and _is_plain(v)}
        shown = one_medium({kind: example[kind] for kind in MEDIA if kind in example})
        fields = {kind: _pixels(kind, value) for kind, value in shown.items()}
        fps = next((_rate(example[key]) for key in RATE_KEYS if key in example), 0.0)
        text = self._text(example)
        return RawItem(where, text, **fields, attributes=attributes, fps=fps, where=where)

    def _text(self, example: Mapping) -> str:
        if not self._text_path:
            return ""
        value = example
        for key in self._text_path:
            # A sequence of features: a mapping of lists, or a list of mappings.
            value = value[key] if isinstance(value, Mapping) else [one[key] for one in value]
        if self._label:
            return self._label(int(np.ravel(value)[0]))  # of several labels the first
        return caption_text(value)


def text_feature(features, where: str, text: str = "") -> tuple[tuple[str, ...], Callable | None]:
    """The path of the feature that holds the text, and the namer of its classes if it is a label.

    Strings and sequences of strings may be the text. A feature called as one of `CAPTION_KEYS` is
    chosen, the first of these; within a mapping again one of that name, or its only string. Without
    such a feature it is the class label "label". `text` names one instead. The path is empty if
    there are no strings and no label. SourceError names the options if the rule finds several, or
    strings that are called otherwise.
    """
    options = dict(_text_options(features))
    if text:
        chosen = [path for path in options if "/".join(path) == text]
    else:
        named = [[p for p in options if p[0] == key] for key in (*CAPTION_KEYS, "label")]
        chosen = next(filter(None, named), [])
        inner = [[p for p in chosen if p[-1] == key] for key in CAPTION_KEYS]
        chosen = chosen if len(chosen) == 1 else next(filter(None, inner), chosen)
    if len(chosen) == 1:
        return chosen[0], options[chosen[0]]
    if not options and not text:
        return (), None
    names = ", ".join("/".join(path) for path in chosen or options) or "none"
    wanted = f"no text feature is called {text!r}" if text else "which feature is the text is open"
    raise SourceError(f"{where}: {wanted}; choose one by tfds:NAME:SPLIT#FEATURE from: {names}")


def _text_options(features, path: tuple[str, ...] = ()) -> Iterator[tuple]:
    """(path, None) of each string feature, (path, namer) of each class label with its names."""
    for key in features.keys():
        feature, at = features[key], (*path, key)
        if hasattr(feature, "keys"):
            yield from _text_options(feature, at)
        elif hasattr(feature, "int2str"):
            yield at, feature.int2str
        elif np.dtype(getattr(feature, "np_dtype", None)).kind in "OSU":
            yield at, None


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
