"""Causal grouped-query attention within documents, over whole rows or through a cache.

Whole rows: several documents may share a row. A query attends to the keys of its own segment id at
or before its own position in the row. Segment 0 is padding: it attends to nothing and gives zeros.

Cache: prompts are padded on the left so that all rows write the same slots at the same time.

The implementations for whole rows are in attention_kernels/.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from emu3_jax.models.language import rope
from emu3_jax.models.language.attention_kernels.choice import IMPLEMENTATIONS, choose
from emu3_jax.models.language.attention_kernels.reference import (
    MASKED,
    scores,
    weighted_sum,
    zero_blind_rows,
)
from emu3_jax.models.language.layers import Linear
from emu3_jax.models.language.transformer_config import TransformerConfig
from emu3_jax.sharding import constrain


class KVCache(NamedTuple):
    """Keys and values of the tokens read so far, for all layers.

    Attributes:
        k: [L, B, C, K, H], keys after rotation; C slots.
        v: [L, B, C, K, H].
        valid: bool [B, C], slots that hold a real token (written by `Transformer.decode`).
        index: int32 scalar, the next slot to be written, the same for the whole batch.
    """

    k: jax.Array
    v: jax.Array
    valid: jax.Array
    index: jax.Array

    LOGICAL = ("layers", "batch", None, "kv_heads", "head_dim")

    @classmethod
    def zeros(cls, num_layers, batch, slots, num_kv_heads, head_dim, dtype) -> "KVCache":
        """An empty cache."""
        shape = (num_layers, batch, slots, num_kv_heads, head_dim)
        return cls(
            k=jnp.zeros(shape, dtype),
            v=jnp.zeros(shape, dtype),
            valid=jnp.zeros((batch, slots), bool),
            index=jnp.zeros((), jnp.int32),
        )


class Context(NamedTuple):
    """What all layers of one call share: rotations and masks.

    Attributes:
        cos, sin: [B, S, H / 2].
        segment_ids: int [B, S], for whole rows.
        row_positions_S: int [S], position of each token in its row, for whole rows; see zigzag.py.
        old_mask: bool [B, S, C], which slots of the cache a new query attends to.
        new_mask: bool [B, S, S], which new keys it attends to.
    """

    cos: jax.Array
    sin: jax.Array
    segment_ids: jax.Array | None = None
    row_positions_S: jax.Array | None = None
    old_mask: jax.Array | None = None
    new_mask: jax.Array | None = None


def cached(q_BSNH, k_BTKH, v_BTKH, k_BCKH, v_BCKH, context: Context):
    """New queries over the cache and over the new keys.

    The cache is only read, never copied: one softmax runs over the scores of old and new keys, and
    the caller writes the new keys of all layers at once.
    """
    mask = jnp.concatenate([context.old_mask, context.new_mask], axis=-1)
    both = jnp.concatenate([scores(q_BSNH, k_BCKH), scores(q_BSNH, k_BTKH)], axis=-1)
    probs = jax.nn.softmax(jnp.where(mask[:, None, None], both, MASKED), axis=-1)
    old, new = jnp.split(probs, [k_BCKH.shape[1]], axis=-1)
    out = weighted_sum(old, v_BCKH) + weighted_sum(new, v_BTKH)
    # A query that attends to anything attends to its own key. With `mask.any`, XLA would reduce the
    # whole mask at compile time, which takes minutes if the cache is known to be empty.
    return zero_blind_rows(out, jnp.diagonal(context.new_mask, axis1=1, axis2=2))


class Attention(nn.Module):
    """Projections, rotation, attention, output projection."""

    config: TransformerConfig

    def _whole_rows(self, q, k, v, segment_ids_BS, deterministic):
        if self.is_initializing():
            return q  # initial weights do not depend on attention or on its machine
        c = self.config
        rate = 0.0 if deterministic else c.probability_dropout
        key = self.make_rng("dropout") if rate > 0.0 else None
        name = choose(c.attention, q.shape[1], rate, c.dtype)
        return IMPLEMENTATIONS[name](q, k, v, segment_ids_BS, rate, key)

    @nn.compact
    def __call__(self, x_BSD, cache, context: Context, deterministic: bool):
        """Attend.

        Args:
            x_BSD: normed input.
            cache: None, or (k, v) of this layer, [B, C, K, H] each.
            context: rotations and masks.
            deterministic: no dropout.

        Returns:
            y_BSD, and the new (k, v) [B, S, K, H] if a cache was given, else None.
        """
        c = self.config
        linear = functools.partial(Linear, dtype=c.dtype, param_dtype=c.param_dtype)

        def project(name, heads, logical):
            shape, axes = (c.hidden_size, heads, c.head_dim), ("embed", logical, "head_dim")
            x = linear(shape=shape, logical=axes, name=name)(x_BSD)
            return checkpoint_name(constrain(x, "batch", "sequence", *axes[1:]), name)

        q = project("query", c.num_heads, "heads")
        k = project("key", c.num_kv_heads, "kv_heads")
        v = project("value", c.num_kv_heads, "kv_heads")
        q = rope.rotate(q, context.cos, context.sin)
        k = rope.rotate(k, context.cos, context.sin)
        if cache is None:
            out, new = self._whole_rows(q, k, v, context.segment_ids, deterministic), None
        else:
            new = (k.astype(cache[0].dtype), v.astype(cache[1].dtype))
            out = cached(q, k, v, cache[0].astype(q.dtype), cache[1].astype(q.dtype), context)
        out = constrain(out, "batch", "sequence", "heads", "head_dim")
        output = linear(
            shape=(c.num_heads, c.head_dim, c.hidden_size),
            logical=("heads", "head_dim", "embed"),
            num_in=2,
            name="output",
        )
        return output(out), new
