"""Prompts into the cache, a chunk of columns at a time."""

import jax
import jax.numpy as jnp

from emu3_jax.models.attention import KVCache
from emu3_jax.models.transformer import Transformer

# Columns read at once. The float32 scores of one layer are the largest thing that reading makes,
# heads x chunk x (slots + chunk) x 4 bytes a row: with the sizes of Emu3-Chat 0.6 GB for a prompt
# of 8,192 columns, where reading them at once would take 18 GB. 512 are enough to fill the matrix
# units of an accelerator.
CHUNK = 512


def read(
    model: Transformer, params, tokens_RP: jax.Array, positions_RP: jax.Array, cache: KVCache
) -> KVCache:
    """The cache with P more slots written; the results are those of one pass over all P.

    Args:
      model: the transformer.
      params: its parameters.
      tokens_RP: int32 [R, P], padded on the left; P is a power of two.
      positions_RP: int32 [R, P], as `Transformer.decode` takes them.
      cache: with P slots left.
    """
    rows, columns = tokens_RP.shape
    chunk = min(CHUNK, columns)

    def step(cache: KVCache, piece_2RC: jax.Array) -> tuple[KVCache, None]:
        _, cache = model.apply({"params": params}, *piece_2RC, cache, method="decode")
        return cache, None

    both_2RMC = jnp.stack([tokens_RP, positions_RP]).reshape(2, rows, columns // chunk, chunk)
    return jax.lax.scan(step, cache, jnp.moveaxis(both_2RMC, 2, 0))[0]
