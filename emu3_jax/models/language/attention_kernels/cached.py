"""Attention of new tokens to a cache and to each other."""

import jax
import jax.numpy as jnp

from emu3_jax.models import cpu
from emu3_jax.models.language import layers
from emu3_jax.models.language.attention_kernels.reference import MASKED, zero_blind_rows
from emu3_jax.models.language.kv_cache import KVCache, LayerOfStack


def cached(
    q_RSNH: jax.Array,
    old: KVCache | LayerOfStack,
    new: KVCache,
    old_mask_RSC: jax.Array,
    new_mask_RST: jax.Array,
) -> jax.Array:
    """New queries over the first C slots of the cache and over the new keys.

    The cache is only read, never copied: one softmax runs over the scores of old and new keys, and
    the caller writes the new keys of all layers at once.

    Args:
      q_RSNH: queries after rotation.
      old: of one layer, with at least C slots.
      new: keys and values of the S tokens as the cache stores them, so that a token is the same to
        those that are read with it and to later ones.
      old_mask_RSC, new_mask_RST: bool, what each query attends to.

    Returns:
      [R, S, N, H] in the type of the queries; zeros for a query that does not attend to itself.
    """
    old = old.live(old_mask_RSC.shape[-1])
    rows, length, heads, dim = q_RSNH.shape
    kv_heads = old.k.shape[1]
    q_RKGSH = jnp.moveaxis(q_RSNH.reshape(rows, length, kv_heads, -1, dim), 1, 3) * dim**-0.5
    mask = jnp.concatenate([old_mask_RSC, new_mask_RST], axis=-1)[:, None, None]
    both = jnp.concatenate([_scores(q_RKGSH, part) for part in (old, new)], axis=-1)
    probs = jax.nn.softmax(jnp.where(mask, both, MASKED), axis=-1)
    of_old, of_new = jnp.split(probs, [old_mask_RSC.shape[-1]], axis=-1)
    dtype = q_RSNH.dtype
    out_RKGSH = _weighted(of_old, old, dtype) + _weighted(of_new, new, dtype)
    out_RSNH = jnp.moveaxis(out_RKGSH, 3, 1).reshape(rows, length, heads, dim)
    # A query that attends to anything attends to its own key. With `mask.any`, XLA would reduce the
    # whole mask at compile time, which takes minutes if the cache is known to be empty.
    return zero_blind_rows(out_RSNH, jnp.diagonal(new_mask_RST, axis1=1, axis2=2))


def _scores(q_RKGSH: jax.Array, part: KVCache) -> jax.Array:
    """Products with the keys, float32 [R, K, G, S, C]."""
    k_RKCH = part.k.astype(q_RKGSH.dtype)
    if cpu.single_query_as_sums(q_RKGSH.shape[3]):
        product = (q_RKGSH.astype(jnp.float32) * k_RKCH[:, :, None]).sum(-1)[..., None, :]
    else:
        product = jnp.einsum(
            "rkgsh,rkch->rkgsc",
            q_RKGSH,
            k_RKCH,
            precision=layers.precision(q_RKGSH.dtype),
            preferred_element_type=jnp.float32,
        )
    # A scale for each key may come after the product over H.
    return product if part.k_scale is None else product * part.k_scale[:, :, None, None]


def _weighted(probs_RKGSC: jax.Array, part: KVCache, dtype) -> jax.Array:
    """The mean of the values, [R, K, G, S, H] in `dtype`."""
    if part.v_scale is not None:
        probs_RKGSC = probs_RKGSC * part.v_scale[:, :, None, None]
    v_RKCH = part.v.astype(dtype)
    if cpu.single_query_as_sums(probs_RKGSC.shape[3]):
        sums_RKGH = (probs_RKGSC[..., 0, :, None] * v_RKCH[:, :, None]).sum(-2)
        return sums_RKGH[..., None, :].astype(dtype)
    probs_RKGSC = probs_RKGSC.astype(dtype)
    return jnp.einsum("rkgsc,rkch->rkgsh", probs_RKGSC, v_RKCH, precision=layers.precision(dtype))
