"""The language model as evaluators use it: captions for pictures, pictures for captions."""

from collections.abc import Sequence

import numpy as np

from emu3_jax.data import vision_codec
from emu3_jax.evaluate.evaluator import Subject
from emu3_jax.evaluate.items import Item
from emu3_jax.generate import modalities
from emu3_jax.generate.sampling import Sampling

# The longest caption of the emoji corpus is 12 words; pieces of bytes would still fit.
MAX_CAPTION_TOKENS = 96


def caption(subject: Subject, pictures: Sequence[np.ndarray]) -> list[str]:
    """The most likely continuation, token by token, behind each uint8 [H, W, 3]."""
    codes = vision_codec.encode(subject.vision_tokenizer, pictures, subject.batch_size)
    options = modalities.Options(
        sampling=Sampling(temperature=0.0),
        max_new=MAX_CAPTION_TOKENS,
        batch_size=subject.batch_size,
        progress=subject.progress.line,
    )
    return modalities.caption_images(subject.bundle, codes, options)


def draw(subject: Subject, chosen: Sequence[Item]) -> list[np.ndarray]:
    """One picture uint8 [H, W, 3] a caption, as many tokens high and wide as the real one."""
    sizes: dict[tuple[int, int], list[int]] = {}
    config = subject.vision_tokenizer[0].config
    for index, item in enumerate(chosen):
        height, width, _ = vision_codec.whole_tokens(config, item.pixels).shape
        grid = (height // config.spatial_factor, width // config.spatial_factor)
        sizes.setdefault(grid, []).append(index)
    options = modalities.Options(
        sampling=subject.sampling,
        candidates=subject.candidates,
        batch_size=subject.batch_size,
        progress=subject.progress.line,
    )
    pictures: list = [None] * len(chosen)
    for (h, w), indices in sizes.items():
        captions = [chosen[i].text for i in indices]
        codes = modalities.text_to_image(subject.bundle, captions, h, w, options)
        drawn = vision_codec.decode(subject.vision_tokenizer, list(codes), subject.batch_size)
        for index, picture in zip(indices, drawn, strict=True):
            pictures[index] = picture
    return pictures
