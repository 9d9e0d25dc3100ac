"""Constraint masks: which tokens each row may generate next.

`mask[b, t]` constrains the t-th new token of row b: an id (exactly that one), VISUAL (any visual
token), TEXT (any text token, or EOS), WORD (any text token, not EOS), TEXT_OR_IMAGE (any text
token, EOS, or BOI, which ends the answer too) or CHOICE (one of `Request.choices`: text tokens or
IMG). The constraints come from `emu3_jax.sequence`; this module gives them the shape of a batch.
Sampling happens inside the visual ids, or the text ids and these marks, so no other id can be
drawn. Only `Sampling.whole_vocabulary` allows texts any id.
"""

import jax
import jax.numpy as jnp
import numpy as np

from emu3_jax.sequence import ANY_VISUAL
from emu3_jax.vocab import Vocab

VISUAL = ANY_VISUAL
TEXT = -2
WORD = -3
TEXT_OR_IMAGE = -4
CHOICE = -5
# Entries that need the scores of texts.
TEXTS = (TEXT, WORD, TEXT_OR_IMAGE, CHOICE)


def free_text(max_new: int, may_be_empty: bool = True) -> np.ndarray:
    """The mask of a caption or an answer, int32 [max_new]: text until EOS."""
    row = np.full(max_new, TEXT, np.int32)
    row[:1] = TEXT if may_be_empty else WORD
    return row


def text_scores(
    scores_BV: jax.Array,
    mask_B: jax.Array,
    choices_BA: jax.Array,
    vocab: Vocab,
    whole_vocabulary: bool = False,
) -> jax.Array:
    """The scores of the text tokens, then of EOS, BOI and IMG: [..., text size + 3].

    What the mask does not allow has -inf. With `whole_vocabulary` all scores, [..., V], and of the
    entries WORD alone is heeded.

    Args:
      scores_BV: float32 [..., V], of all ids.
      mask_B: int32 [...], the entries.
      choices_BA: int32 [..., A], the ids that CHOICE allows, and -1; A may be 0.
      vocab: the token space.
      whole_vocabulary: as in `Sampling`.
    """
    mask_B1 = mask_B[..., None]
    eos_B1 = scores_BV[..., vocab.eos : vocab.eos + 1]
    eos_B1 = jnp.where(mask_B1 == WORD, -jnp.inf, eos_B1)
    if whole_vocabulary:
        return scores_BV.at[..., vocab.eos].set(eos_B1[..., 0])
    boi_B1 = scores_BV[..., vocab.boi : vocab.boi + 1]
    boi_B1 = jnp.where(mask_B1 == TEXT_OR_IMAGE, boi_B1, -jnp.inf)
    img_B1 = scores_BV[..., vocab.img : vocab.img + 1]
    img_B1 = jnp.where(mask_B1 == CHOICE, img_B1, -jnp.inf)
    texts_BV = scores_BV[..., : vocab.text_size]
    found_BV = jnp.concatenate([texts_BV, eos_B1, boi_B1, img_B1], axis=-1)
    if not choices_BA.shape[-1]:
        return found_BV
    ids_V = text_tokens(jnp.arange(found_BV.shape[-1]), vocab)
    is_chosen_BV = (choices_BA[..., None] == ids_V).any(axis=-2)
    return jnp.where((mask_B1 == CHOICE) & ~is_chosen_BV, -jnp.inf, found_BV)


def text_tokens(index_B: jax.Array, vocab: Vocab, whole_vocabulary: bool = False) -> jax.Array:
    """The token ids of indices into `text_scores`, int32 [...]."""
    if whole_vocabulary:
        return index_B
    marks = jnp.array([vocab.eos, vocab.boi, vocab.img], jnp.int32)
    mark_B = marks[jnp.clip(index_B - vocab.text_size, 0, 2)]
    return jnp.where(index_B < vocab.text_size, index_B, mark_B)


def is_end(token_B: jax.Array, mask_B: jax.Array, vocab: Vocab) -> jax.Array:
    """Whether an answer ends behind each token, bool [...]: EOS, or BOI that was free to come."""
    return (token_B == vocab.eos) | ((token_B == vocab.boi) & (mask_B == TEXT_OR_IMAGE))


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
        token_B = jnp.where(jnp.isin(mask_B, jnp.array(TEXTS)), text_B, token_B)
    return token_B.astype(jnp.int32)
