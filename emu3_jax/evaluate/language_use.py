"""How evaluators use the language model: captions for images, images for captions."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from emu3_jax.data.codec import vision_codec
from emu3_jax.evaluate import items
from emu3_jax.evaluate.evaluator import SplitEvaluator
from emu3_jax.evaluate.items import Item
from emu3_jax.generate import modalities, presets
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.interop.bundle import Bundle, Language, check_vision_tokenizer
from emu3_jax.progress import Progress
from emu3_jax.train import weights

# The longest caption of the emoji corpus is 12 words; this is enough even at a token per byte.
MAX_CAPTION_TOKENS = 96


@dataclasses.dataclass(frozen=True)
class DrawingSampling(Sampling):
    """How to draw images; the defaults are those of the released demo."""

    guidance: float = presets.DEMO.guidance
    top_k: int = presets.DEMO.top_k


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodesEvaluator(SplitEvaluator):
    """An evaluator of a language model that turns images into codes or codes into images.

    Attributes:
      vision_tokenizer: run directory or weights of the vision tokenizer that the language model
        was trained with.
    """

    measures: ClassVar[str] = "language_model"

    vision_tokenizer: str = ""

    @functools.cached_property
    def tokenizer(self) -> tuple[Any, Any]:
        """(module, variables) of the vision tokenizer, read once."""
        return self.use("vision_tokenizer", weights.load_vision_tokenizer)

    def check(self, language: Language) -> None:
        """Checks that the vision tokenizer is the one of the language model."""
        found = (*self.tokenizer, "it", "the language model")
        self.use("vision_tokenizer", lambda _: check_vision_tokenizer(language, *found))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageEvaluator(CodesEvaluator):
    """An evaluator of a language model on raw images.

    Attributes:
      data: folder of raw items: `<split>.jsonl` and its media files.
    """

    data: str = ""

    def check(self, language: Language) -> None:
        """Also checks the splits."""
        self.use("data", lambda data: items.check_splits(data, self.splits))
        super().check(language)


def caption(
    bundle: Bundle,
    tokenizer: tuple[Any, Any],
    images: Sequence[np.ndarray],
    batch_size: int,
    progress: Progress,
) -> list[str]:
    """Returns the greedy caption of each image, uint8 [H, W, 3]."""
    count = progress.counter("encoded", len(images))
    codes = vision_codec.encode(tokenizer, images, batch_size, done=count)
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
    """Draws one image uint8 [H, W, 3] per caption, of the same size in tokens as the real one."""
    sizes: dict[tuple[int, int], list[int]] = {}
    config = tokenizer[0].config
    for index, item in enumerate(chosen):
        height, width, _ = vision_codec.whole_tokens(config, item.pixels).shape
        grid = (height // config.spatial_factor, width // config.spatial_factor)
        sizes.setdefault(grid, []).append(index)
    images: list = [None] * len(chosen)
    count = Progress(options.progress).counter("decoded", len(chosen))
    for (h, w), indices in sizes.items():
        captions = [chosen[i].text for i in indices]
        codes = modalities.text_to_image(bundle, captions, h, w, options)
        drawn = vision_codec.decode(tokenizer, list(codes), options.batch_size, done=count)
        for index, image in zip(indices, drawn, strict=True):
            images[index] = image
    return images
