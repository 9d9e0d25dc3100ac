"""Small preference pairs, and datasets of them."""

import numpy as np
from token_records import text, write_dataset

from emu3_jax.data.tokens.records import Record
from emu3_jax.sequence import Image


def pair(i=0, sizes=((2, 3), (2, 3)), prompt=None) -> Record:
    """A caption and two images of these sizes in codes."""
    rng = np.random.default_rng(i)
    images = [Image(rng.integers(0, 100, size)) for size in sizes]
    scores = {"scores": {"chosen": {"s": 1.0}, "rejected": {"s": 0.0}}, "source": "test"}
    caption = text(f"no {i}" if prompt is None else prompt)
    return Record(f"p{i}", "test", "preference", (caption, *images), scores)


def write_pairs(path, count=12, **changes):
    """A dataset of pairs, some of whose images have different sizes."""
    sizes = (((2, 3), (2, 3)), ((3, 2), (2, 3)))
    return write_dataset(path, [pair(i, sizes[i % 2]) for i in range(count)], **changes)
