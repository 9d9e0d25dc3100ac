"""Causal grouped-query attention within documents, over whole rows or through a cache.

Whole rows: several documents may share a row. A query attends to the keys of its own segment id at
or before its own position in the row. Segment 0 is padding: it attends to nothing and gives zeros.

Cache: a query attends to the slots and to the new tokens that its masks name; see kv_cache.py.

The implementations are in attention_kernels/.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from emu3_jax.models.language import rope
from emu3_jax.models.language.attention_kernels.cached import cached
from emu3_jax.models.language.attention_kernels.choice import IMPLEMENTATIONS, choose
from emu3_jax.models.language.kv_cache import KVCache
from emu3_jax.models.language.layers import Linear
from emu3_jax.models.language.transformer_config import TransformerConfig
from emu3_jax.sharding import constrain


class Context(NamedTuple):
    """What all layers of one call share: rotations and masks.

    Attributes:
        cos, sin: [B, S, H / 2].
        segment_ids: int [B, S], for whole rows.
        row_positions_S: int [S], position of each token in its row, for whole rows; see zigzag.py.
        old_mask: bool [B, S, C], which of the first C slots a new query attends to.
        new_mask: bool [B, S, S], which new keys it attends to.
        stack: the KVCache of all layers, if they are scanned and there is one.
    """

    cos: jax.Array
    sin: jax.Array
    segment_ids: jax.Array | None = None
    row_positions_S: jax.Array | None = None
    old_mask: jax.Array | None = None
    new_mask: jax.Array | None = None
    stack: KVCache | None = None


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
            cache: None, or the KVCache of this layer, or the layer's index in `context.stack`.
            context: rotations and masks.
            deterministic: no dropout.

        Returns:
            y_BSD, and keys and values of the new tokens as the cache stores them, if there is one.
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
        if context.stack is not None:
            cache = context.stack.layer(cache)
        if cache is None:
            out, new = self._whole_rows(q, k, v, context.segment_ids, deterministic), None
        else:
            new = cache.stored(k, v)
            out = cached(q, cache, new, context.old_mask, context.new_mask)
        out = constrain(out, "batch", "sequence", "heads", "head_dim")
        output = linear(
            shape=(c.num_heads, c.head_dim, c.hidden_size),
            logical=("heads", "head_dim", "embed"),
            num_in=2,
            name="output",
        )
        return output(out), new
