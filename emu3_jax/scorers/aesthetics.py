"""LAION's aesthetic predictor, version 2, on OpenAI's ViT-L/14."""

import dataclasses
import functools
from typing import ClassVar

import jax
import numpy as np

from emu3_jax.config import ConfigError
from emu3_jax.interop.vision import aesthetic_head
from emu3_jax.models.features import preference_heads
from emu3_jax.scorers.clip_scorer import ClipScorer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aesthetics(ClipScorer):
    """Some 1 … 10, of the image alone; Emu3's paper keeps images of 5.5 and more.

    Attributes:
      head: `sac+logos+ava1-l14-linearMSE.pth` or a file of the same names.
    """

    reads_text: ClassVar[bool] = False

    name: str = "aesthetics"
    head: str

    def check(self) -> None:
        """As `ClipScorer.check`."""
        super().check()
        _ = self.predictor

    @functools.cached_property
    def predictor(self) -> dict[str, np.ndarray]:
        """The head's weights."""
        try:
            return aesthetic_head.load(self.head, self.model[0].embedding)
        except ValueError as error:
            raise ConfigError(f"head: {error}") from error

    def scores_of(self, texts_ND: None, images_ND: np.ndarray) -> jax.Array:
        """The scores."""
        return preference_heads.aesthetic_scores(self.predictor, images_ND)
