"""How well a caption fits an image by any CLIP: the cosine of their embeddings."""

import dataclasses

import jax
import numpy as np

from emu3_jax.models.features import preference_heads
from emu3_jax.scorers.clip_scorer import ClipScorer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipSimilarity(ClipScorer):
    """Cosine in -1 … 1, not multiplied by the logit scale; images as OpenAI's code reads them."""

    name: str = "clip"

    def scores_of(self, texts_ND: np.ndarray, images_ND: np.ndarray) -> jax.Array:
        """The cosines."""
        return preference_heads.cosines(texts_ND, images_ND)
