"""A vision encoder without weights: each code is the mean grey level of its square of pixels."""

import json

import numpy as np

from emu3_jax.data import media
from emu3_jax.tokenize.run import tokenize
from emu3_jax.tokenize.tokenize_config import TokenizeConfig

FACTOR = 8


class GreyEncoder:
    """As `VisionEncoder`; of a clip, two frames become one, of the level of the first."""

    spatial_factor, temporal_factor, codebook_size, fingerprint = FACTOR, 2, 256, "grey"

    def batcher(self, *rows):
        return self

    def add(self, pixels, done):
        squares = pixels[..., ::FACTOR, ::FACTOR, 0].astype(np.int32)
        done(squares if squares.ndim == 2 else squares[::2])

    def flush(self): ...


def write_greys(folder, names):
    """Images of 16 x 16 pixels; the k-th has the grey level k."""
    for level, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        media.write_png(folder / name, np.full((16, 16, 3), level, np.uint8))


def made_from(folder, *sources, encoder=None, **changes):
    """The folder of the dataset made from sources in `folder`."""
    fields = {"output": str(folder / "out"), "splits": {"train": list(sources)}}
    fields |= {"corpus": str(folder), "min_pixels": 256, "max_pixels": 256, "max_skipped": 1.0}
    return tokenize(TokenizeConfig(**(fields | changes)), encoder or GreyEncoder())[0]


def skipped_of(dataset):
    """The skipped items of a dataset, as listed beside it."""
    return [json.loads(line) for line in (dataset / "skipped.jsonl").read_text().splitlines()]


def level(segment):
    """The grey level of an image, or of the first frame of a clip."""
    return int(segment.codes.flat[0])
