"""The fine-tuning sample of the released code, for training exactly as it does.

BOS caption block, without EOS, PAD on the right up to a fixed length (emu3/train/datasets.py of
baaivision/Emu3). Our own documents differ: they end with EOS, and marks and sizes have a loss.
"""

import numpy as np

from emu3_jax.sequence.documents import Image, Text
from emu3_jax.sequence.grammar import Grammar

# Positions without a loss (torch's ignore_index).
IGNORED = -100
# emu3/train/train.py: how often the caption becomes "", the prompt of the unconditional branch.
NULL_PROMPT_PROBABILITY = 0.05


def sft_sample(
    grammar: Grammar, caption: str, codes: np.ndarray, length: int, visual_loss_only: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and labels of one captioned image.

    Args:
      grammar: the released one for the released samples.
      caption: text before the image; see `maybe_null`.
      codes: int [h, w].
      length: of the sample; 10240 in the released script.
      visual_loss_only: labels are the visual ids, and IGNORED elsewhere (the released setting);
        False: all ids are labels, PAD among them.

    Returns:
      int32 [length] each. A label has the position of its own token, not of the token before it.

    Raises:
      ValueError: the sample is longer than `length`; images are never cut.
    """
    vocab = grammar.vocab
    document = grammar.prompt((Text(caption), Image(codes)))
    if len(document) > length:
        raise ValueError(f"The sample has {len(document)} tokens, expected at most {length}.")
    ids = np.full(length, vocab.pad, np.int32)
    ids[: len(document)] = document
    labels = np.where(vocab.is_visual(ids), ids, IGNORED) if visual_loss_only else ids.copy()
    return ids, labels.astype(np.int32)


def maybe_null(
    caption: str, rng: np.random.Generator, probability: float = NULL_PROMPT_PROBABILITY
) -> str:
    """The caption, or "" with the given probability."""
    return "" if rng.random() < probability else caption
