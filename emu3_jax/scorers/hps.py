"""HPSv2 and HPSv2.1: a ViT-H/14 of OpenCLIP, tuned on what people prefer (arXiv 2306.09341)."""

import dataclasses
import html
from collections.abc import Callable
from typing import ClassVar

import jax
import numpy as np

from emu3_jax.models.features import preference_heads
from emu3_jax.scorers import clip_images
from emu3_jax.scorers.clip_scorer import ClipScorer


@dataclasses.dataclass(frozen=True, kw_only=True)
class HumanPreferenceScore(ClipScorer):
    """The cosine, some 0.2 … 0.35; the released benchmark prints 100 times as much.

    `clip` is HPS_v2.1_compressed.pt or HPS_v2_compressed.pt; scores of the two, and scores for
    different captions, are not comparable. Images are not cropped but padded
    (`clip_images.longest_side`), and HTML entities in captions are resolved, as in the released
    code; broken Unicode is not repaired.
    """

    as_read: ClassVar[Callable[[np.ndarray, int], np.ndarray]] = clip_images.longest_side

    name: str = "hps"
    activation: str = "gelu"  # of ViT-H-14.json, which the released files come without

    def cleaned(self, prompt: str) -> str:
        """Entities are resolved twice, as OpenCLIP does for captions from web pages."""
        return html.unescape(html.unescape(prompt)).strip()

    def scores_of(self, texts_ND: np.ndarray, images_ND: np.ndarray) -> jax.Array:
        """The cosines."""
        return preference_heads.cosines(texts_ND, images_ND)
