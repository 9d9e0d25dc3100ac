"""Constraint masks: what each row may emit next, as a table that decoding reads column by column.

`table[b, t]` says what row b's t-th new token may be: an id (exactly that one), VISUAL (any visual
token), TEXT (any text token, or EOS) or WORD (any text token, not EOS). The rules themselves come
from `emu3_jax.sequence`; here they only get the shape of a batch. Sampling then happens inside the
two id ranges: an id outside cannot be drawn. Only `Sampling.whole_vocabulary` lets texts be any id.
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
    """The row of a caption or an answer: text until EOS, at most `max_new` tokens."""
    row = np.full(max_new, TEXT, np.int32)
    row[:1] = TEXT if may_be_empty else WORD
    return row


def table(rows: list[np.ndarray], batch: int, columns: int, pad: int) -> np.ndarray:
    """Stacks rows into int32 [batch, columns]; what is past a row's end is forced to be PAD."""
    table_BN = np.full((batch, columns), pad, np.int32)
    for b, row in enumerate(rows):
        table_BN[b, : len(row)] = row
    return table_BN


def visual_scores(scores_BV: jax.Array, vocab: Vocab) -> jax.Array:
    """The part of the scores over visual tokens, [B, codebook size]; index k is code k."""
    start = vocab.visual_start
    return scores_BV[:, start : start + vocab.codebook_size]


def text_scores(
    scores_BV: jax.Array, rule_B: jax.Array, vocab: Vocab, whole_vocabulary: bool = False
) -> jax.Array:
    """The part of the scores over text tokens and, last, EOS: [B, text size + 1].

    With `whole_vocabulary` all of them, [B, V]. Where the rule is WORD the score of EOS is -inf.
    """
    eos_B1 = scores_BV[:, vocab.eos : vocab.eos + 1]
    eos_B1 = jnp.where(rule_B[:, None] == WORD, -jnp.inf, eos_B1)
    if whole_vocabulary:
        return scores_BV.at[:, vocab.eos].set(eos_B1[:, 0])
    return jnp.concatenate([scores_BV[:, : vocab.text_size], eos_B1], axis=-1)


def text_tokens(index_B: jax.Array, vocab: Vocab, whole_vocabulary: bool = False) -> jax.Array:
    """The token ids of indices into `text_scores`, int32 [B]."""
    if whole_vocabulary:
        return index_B
    return jnp.where(index_B == vocab.text_size, vocab.eos, index_B)


def choose(
    rule_B: jax.Array, code_B: jax.Array | None, text_B: jax.Array | None, vocab: Vocab
) -> jax.Array:
    """The next token ids, int32 [B], from the rules of this column and the draws.

    Args:
      rule_B: int32 [B], one column of the table.
      code_B: int32 [B], indices into `visual_scores`, or None when no row of the batch needs them.
      text_B: int32 [B], ids from `text_tokens`, or None likewise.
      vocab: the token space.
    """
    token_B = rule_B
    if code_B is not None:
        token_B = jnp.where(rule_B == VISUAL, vocab.visual_start + code_B, token_B)
    if text_B is not None:
        token_B = jnp.where((rule_B == TEXT) | (rule_B == WORD), text_B, token_B)
    return token_B.astype(jnp.int32)
