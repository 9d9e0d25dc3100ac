"""The language model as evaluators use it: captions for pictures, pictures for captions."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from emu3_jax.data.codec import vision_codec
from emu3_jax.evaluate import items
from emu3_jax.evaluate.evaluator import SplitEvaluator
from emu3_jax.evaluate.items import Item
from emu3_jax.evaluate.progress import Progress
from emu3_jax.generate import modalities, presets
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.interop.bundle import Bundle, Language, check_vision_tokenizer
from emu3_jax.train import weights

# The longest caption of the emoji corpus is 12 words; pieces of bytes would still fit.
MAX_CAPTION_TOKENS = 96


@dataclasses.dataclass(frozen=True)
class DrawingSampling(Sampling):
    """How pictures are drawn: as the released demo does, where an entry does not say otherwise."""

    guidance: float = presets.DEMO.guidance
    top_k: int = presets.DEMO.top_k


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureEvaluator(SplitEvaluator):
    """An evaluator of a language model on raw pictures.

    Attributes:
      data: folder of raw items, `<split>.jsonl` beside its media files.
      vision_tokenizer: run directory or weights of the vision tokenizer that the language model
        was trained with.
    """

    measures: ClassVar[str] = "language_model"

    data: str = ""
    vision_tokenizer: str = ""

    @functools.cached_property
    def tokenizer(self) -> tuple[Any, Any]:
        """(module, variables) of the vision tokenizer, read once."""
        return self.use("vision_tokenizer", weights.load_vision_tokenizer)

    def check(self, language: Language) -> None:
        """Looks for the splits, and whether the vision tokenizer gives the codes that are known."""
        self.use("data", lambda data: items.check_splits(data, self.splits))
        found = (*self.tokenizer, "it", "the language model")
        self.use("vision_tokenizer", lambda _: check_vision_tokenizer(language, *found))


def caption(
    bundle: Bundle,
    tokenizer: tuple[Any, Any],
    pictures: Sequence[np.ndarray],
    batch_size: int,
    progress: Progress,
) -> list[str]:
    """The most likely continuation, token by token, behind each uint8 [H, W, 3]."""
    codes = vision_codec.encode(tokenizer, pictures, batch_size)
    options = modalities.Options(
        sampling=Sampling(temperature=0.0),
        max_new=MAX_CAPTION_TOKENS,
        batch_size=batch_size,
        progress=progress.line,
    )
    return modalities.caption_images(bundle, codes, options)


def draw(
    bundle: Bundle, tokenizer: tuple[Any, Any], chosen: Sequence[Item], options: modalities.Options
) -> list[np.ndarray]:
    """One picture uint8 [H, W, 3] a caption, as many tokens high and wide as the real one."""
    sizes: dict[tuple[int, int], list[int]] = {}
    config = tokenizer[0].config
    for index, item in enumerate(chosen):
        height, width, _ = vision_codec.whole_tokens(config, item.pixels).shape
        grid = (height // config.spatial_factor, width // config.spatial_factor)
        sizes.setdefault(grid, []).append(index)
    pictures: list = [None] * len(chosen)
    for (h, w), indices in sizes.items():
        captions = [chosen[i].text for i in indices]
        codes = modalities.text_to_image(bundle, captions, h, w, options)
        drawn = vision_codec.decode(tokenizer, list(codes), options.batch_size)
        for index, picture in zip(indices, drawn, strict=True):
            pictures[index] = picture
    return pictures
