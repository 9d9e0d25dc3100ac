"""The reference of all implementations: the whole score matrix at once."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from emu3_jax.models.language import layers
from emu3_jax.models.language.attention_kernels import probability_dropout

MASKED = -1e30  # finite, so that a fully masked row stays finite


def document_mask(segment_ids_BS: jax.Array) -> jax.Array:
    """bool [B, S, S]: query s attends to key t of the same segment (not 0) with t <= s."""
    length = segment_ids_BS.shape[1]
    same = segment_ids_BS[:, :, None] == segment_ids_BS[:, None, :]
    real = (segment_ids_BS != 0)[:, :, None]
    return same & real & jnp.tril(jnp.ones((length, length), bool))


def scores(q_BSNH, k_BTKH):
    """Scaled float32 scores [B, K, G, S, T]; head n = (k, g) uses key head n // G."""
    batch, length, heads, dim = q_BSNH.shape
    kv_heads = k_BTKH.shape[2]
    q_BSKGH = q_BSNH.reshape(batch, length, kv_heads, heads // kv_heads, dim)
    product = jnp.einsum(
        "bskgh,btkh->bkgst",
        q_BSKGH,
        k_BTKH,
        precision=layers.precision(q_BSNH.dtype),
        preferred_element_type=jnp.float32,
    )
    return product * dim**-0.5


def weighted_sum(probs_BKGST, v_BTKH):
    """probs @ values per head, [B, S, N, H] in the type of the values."""
    dtype = v_BTKH.dtype
    exact = layers.precision(dtype)
    out = jnp.einsum("bkgst,btkh->bskgh", probs_BKGST.astype(dtype), v_BTKH, precision=exact)
    return out.reshape(*out.shape[:2], -1, out.shape[-1])


def zero_blind_rows(out_BSNH, sees_BS):
    """Zeros for the queries that attend to nothing (`sees_BS` is False)."""
    return jnp.where(sees_BS[:, :, None, None], out_BSNH, jnp.zeros((), out_BSNH.dtype))


def reference(q_BSNH, k_BSKH, v_BSKH, segment_ids_BS, dropout=0.0, dropout_key=None):
    """Whole score matrix, softmax in float32, dropout on the probabilities.

    Memory grows with S^2. For short rows, for CPUs, and as the reference in tests.
    """
    mask_BST = document_mask(segment_ids_BS)
    masked = jnp.where(mask_BST[:, None, None], scores(q_BSNH, k_BSKH), MASKED)
    probs = jax.nn.softmax(masked, axis=-1)
    if dropout > 0.0:
        batch, length, heads, _ = q_BSNH.shape
        positions = (jnp.arange(batch), jnp.arange(heads), jnp.arange(length))
        kept = probability_dropout.kept(dropout_key, dropout, *positions, 0, length)
        kept = kept.reshape(probs.shape)
        probs = jnp.where(kept, probs * probability_dropout.scale(dropout), 0.0)
    out = zero_blind_rows(weighted_sum(probs, v_BSKH), segment_ids_BS != 0)
    return checkpoint_name(out, "attention")
