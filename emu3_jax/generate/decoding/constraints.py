"""Constraint masks: which tokens each row may generate next.

`mask[b, t]` constrains the t-th new token of row b: an id (exactly that one), VISUAL (any visual
token), TEXT (any text token, or EOS) or WORD (any text token, not EOS). The constraints come from
`emu3_jax.sequence`; this module gives them the shape of a batch. Sampling happens inside the two id
ranges, so an id outside cannot be drawn. Only `Sampling.whole_vocabulary` allows texts any id.
"""

import jax
import jax.numpy as jnp
import numpy as np

from emu3_jax.sequence import ANY_VISUAL
from emu3_jax.vocab import Vocab

VISUAL = ANY_VISUAL
TEXT = -2
WORD = -3


def free_text(max_new: int, may_be_empty: bool = True) -> np.ndarray:
    """The mask of a caption or an answer, int32 [max_new]: text until EOS."""
    row = np.full(max_new, TEXT, np.int32)
    row[:1] = TEXT if may_be_empty else WORD
    return row


def text_scores(
    scores_BV: jax.Array, mask_B: jax.Array, vocab: Vocab, whole_vocabulary: bool = False
) -> jax.Array:
    """The scores of the text tokens and, last, of EOS: [..., text size + 1].

    With `whole_vocabulary` all scores, [..., V]. Where the mask is WORD the score of EOS is -inf.
    """
    eos_B1 = scores_BV[..., vocab.eos : vocab.eos + 1]
    eos_B1 = jnp.where(mask_B[..., None] == WORD, -jnp.inf, eos_B1)
    if whole_vocabulary:
        return scores_BV.at[..., vocab.eos].set(eos_B1[..., 0])
    return jnp.concatenate([scores_BV[..., : vocab.text_size], eos_B1], axis=-1)


def text_tokens(index_B: jax.Array, vocab: Vocab, whole_vocabulary: bool = False) -> jax.Array:
    """The token ids of indices into `text_scores`, int32 [...]."""
    if whole_vocabulary:
        return index_B
    return jnp.where(index_B == vocab.text_size, vocab.eos, index_B)


def choose(
    mask_B: jax.Array, code_B: jax.Array | None, text_B: jax.Array | None, vocab: Vocab
) -> jax.Array:
    """The next token ids, int32 [...], from entries of the mask and the draws.

    Args:
      mask_B: int32 [...], the entries.
      code_B: int32, codes, or None if no row of the batch needs them.
      text_B: int32, ids from `text_tokens`, or None likewise.
      vocab: the token space.
    """
    token_B = mask_B
    if code_B is not None:
        token_B = jnp.where(mask_B == VISUAL, vocab.visual_start + code_B, token_B)
    if text_B is not None:
        token_B = jnp.where((mask_B == TEXT) | (mask_B == WORD), text_B, token_B)
    return token_B.astype(jnp.int32)
