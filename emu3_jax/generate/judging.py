"""What scorers say of images that a model drew, from the codes or the pixels that they mean."""

from collections.abc import Sequence

import numpy as np

from emu3_jax.generate import codec
from emu3_jax.interop.bundle import Bundle
from emu3_jax.scorers.scorer import Scorer, Scores, score_all


def reads_codes(scorer: Scorer) -> bool:
    """Whether a scorer judges by a language model, which reads codes; all others read pixels."""
    return hasattr(scorer, "of_model")


def score_codes(
    bundle: Bundle, scorers: Sequence[Scorer], captions: Sequence[str], codes: Sequence[np.ndarray]
) -> list[Scores]:
    """Returns what each scorer says of the images int32 [h, w] of some captions.

    Args:
      bundle: the model that reads, for scorers that judge by one; with its vision tokenizer if a
        scorer reads pixels.
      scorers: from `scorers.registry.make`.
      captions: one per image.
      codes: decoded once, and only if a scorer reads pixels.
    """
    pixels: Sequence[np.ndarray] = ()
    if codes and not all(map(reads_codes, scorers)):
        pixels = codec.decode(bundle, codes)
    return [
        score_all(scorer.of_model(bundle), captions, codes)
        if reads_codes(scorer)
        else score_all(scorer, captions, pixels)
        for scorer in scorers
    ]
