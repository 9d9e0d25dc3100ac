"""MPS, the overall score: a ViT-H/14 and a cross-attention under a condition (arXiv 2405.14705)."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from emu3_jax import sharding
from emu3_jax.config import ConfigError
from emu3_jax.interop.vision import mps_head
from emu3_jax.models.features import clip, mps
from emu3_jax.models.features.clip import ClipConfig
from emu3_jax.scorers import clip_images
from emu3_jax.scorers.clip_scorer import ClipScorer

# Of the released evaluation (eval_overall_mps_on_hpdv2.py), for the overall preference.
OVERALL = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, "
    "structure, instance, texture, quantity, attributes, position, number, location, word, things."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiDimensionalPreference(ClipScorer):
    """e^scale times a cosine, some 10 … 20.

    `clip` is a state dict with both networks (`interop.vision.mps_head`). Each caption is compared
    with the condition by itself; the released code scales by the batch, so that its batches of
    several captions give other numbers.

    Attributes:
      condition: what is judged.
      share: threshold of `mps.selected`; the released model's own `forward` has 0.01.
    """

    as_read: ClassVar[Callable[[np.ndarray, int], np.ndarray]] = clip_images.transformers_crop

    name: str = "mps"
    activation: str = "gelu"  # of CLIP-ViT-H-14-laion2B, which the released file comes without
    condition: str = OVERALL
    share: float = mps.EVALUATION_SHARE

    @functools.cached_property
    def model(self) -> tuple[ClipConfig, Any]:
        """(config, {"clip": tree, "head": layers}) on the host."""
        try:
            config, tree, layers = mps_head.load(self.clip, self.activation)
        except ValueError as error:
            raise ConfigError(f"clip: {error}") from error
        return config, {"clip": tree, "head": layers}

    def score(self, prompts: Sequence[str], images: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [N], see `Scorer.score`."""
        if len(images) == 0:
            return np.zeros(0, np.float32)
        config, side = self.model[0], self.model[0].side
        # All 77 tokens count, so the padding is that of the released tokenizer.
        rows = self.text.rows([*prompts, self.condition], config.context, pad=self.text.end)

        def item(i: int):
            return [rows[i], rows[-1], type(self).as_read(images[i], side)]

        return self.in_batches(self._program, item, len(images))

    @functools.cached_property
    def _program(self) -> Callable:
        config = self.model[0]

        def scores(weights, ids_BS, condition_BS, pixels_BHWC):
            tree, dtype = weights["clip"], jnp.dtype(self.dtype)

            def tokens(tower, hidden):
                return clip.projected(tree, tower, hidden).astype(jnp.float32)

            text = tokens("text", clip.text_hidden(config, tree, ids_BS, dtype))
            condition = tokens("text", clip.text_hidden(config, tree, condition_BS[:1], dtype))
            images = clip.image_hidden(config, tree, pixels_BHWC.astype(dtype))
            end = text[jnp.arange(len(text)), clip.end_positions(config, ids_BS)]
            found = mps.scores(
                weights["head"],
                text,
                end,
                condition,
                tokens("image", images),
                tree["logit_scale"],
                self.share,
            )
            return sharding.gathered(found)

        return jax.jit(scores)
