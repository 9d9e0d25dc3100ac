"""PickScore: a ViT-H/14 tuned on Pick-a-Pic (arXiv 2305.01569)."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import numpy as np

from emu3_jax.models.features import preference_heads
from emu3_jax.scorers import clip_images
from emu3_jax.scorers.clip_scorer import ClipScorer


@dataclasses.dataclass(frozen=True, kw_only=True)
class PickScore(ClipScorer):
    """e^scale times the cosine, some 15 … 25.

    `clip` is a folder with PickScore_v1's model.safetensors and config.json. Images are read as
    transformers' CLIPImageProcessor does. `preference_heads.probabilities` turns the scores of the
    candidates of one caption into shares.
    """

    as_read: ClassVar[Callable[[np.ndarray, int], np.ndarray]] = clip_images.transformers_crop

    name: str = "pickscore"

    def scores_of(self, texts_ND: np.ndarray, images_ND: np.ndarray) -> jax.Array:
        """The scores."""
        return preference_heads.pick_scores(texts_ND, images_ND, self.model[1]["logit_scale"])
