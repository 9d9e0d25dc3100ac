"""The model's own likelihood of the caption after an image, as a scorer of what it drew.

It is what `--candidates` compares (`best_of`), read from the codes that were drawn: the image is
neither decoded nor tokenized again.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from emu3_jax.config import ConfigError
from emu3_jax.generate import best_of
from emu3_jax.interop.bundle import Bundle
from emu3_jax.sequence import Image


@dataclasses.dataclass(frozen=True)
class CodesLikelihood:
    """log p(caption and its end | codes) in nats, of one model."""

    name: str
    bundle: Bundle
    batch_size: int

    def score(self, prompts: Sequence[str], images: Sequence[np.ndarray]) -> np.ndarray:
        """float64 [N] of N captions and codes int32 [h, w].

        Raises:
          ValueError: a pair is longer than the model's context.
        """
        blocks = [Image(codes) for codes in images]
        return -best_of.caption_nats(self.bundle, blocks, prompts, self.batch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionLikelihood:
    """The likelihood by the model that drew; `of_model` makes the scorer of it.

    Attributes:
      name: what its scores are called.
      batch_size: rows that are read at a time.
    """

    name: str = "likelihood"
    batch_size: int = 16

    def of_model(self, bundle: Bundle) -> CodesLikelihood:
        """The scorer of codes that `bundle` drew."""
        return CodesLikelihood(self.name, bundle, self.batch_size)

    def score(self, prompts: Sequence[str], images: Sequence[np.ndarray]) -> np.ndarray:
        """Raises ConfigError: pixels alone do not say which codes were drawn, nor by whom."""
        del prompts, images
        raise ConfigError(
            f"{self.name}: needs a model that reads what was drawn; python -m emu3_jax.preferences "
            "and the task grpo give it"
        )
