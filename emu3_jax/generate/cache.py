"""The keys and values of everything read so far: how large, and how laid out over the devices."""

import jax.numpy as jnp

from emu3_jax import sharding
from emu3_jax.models.attention import KVCache
from emu3_jax.models.transformer import TransformerConfig


def size_bytes(config: TransformerConfig, rows: int, slots: int) -> int:
    """Bytes of keys and values over all devices, for `rows` rows (two a guided request)."""
    numbers = config.num_layers * rows * slots * config.num_kv_heads * config.head_dim
    return 2 * numbers * jnp.dtype(config.dtype).itemsize


def allocate(config: TransformerConfig, rows: int, slots: int) -> KVCache:
    """An empty cache in the type of the activations, laid out over the mesh in use.

    Called inside jit, so that each device makes its own part and the decoding loop writes it in
    place. Rows are cut over `data` and `fsdp`, heads over `tensor`; slots stay whole, since every
    step writes one slot of all rows.
    """
    cache = KVCache.zeros(
        config.num_layers, rows, slots, config.num_kv_heads, config.head_dim, config.dtype
    )
    return cache._replace(
        k=sharding.constrain(cache.k, *KVCache.LOGICAL),
        v=sharding.constrain(cache.v, *KVCache.LOGICAL),
        valid=sharding.constrain(cache.valid, "batch", None),
    )
