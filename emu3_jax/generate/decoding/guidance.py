"""Classifier-free guidance over next-token logits: two branches, one formula.

The conditional branch reads the caption, the unconditional one the negative prompt (or nothing).
Both become log-probabilities over the whole vocabulary before they are mixed, as in the released
inference code (the logits processor of transformers that it uses).
"""

import jax
import jax.numpy as jnp


def guide(cond_BV: jax.Array, uncond_BV: jax.Array, scale: jax.Array | float) -> jax.Array:
    """Mixes the branches: `u + scale * (c - u)` on log-probabilities.

    Args:
      cond_BV: float [..., V], logits of the conditional branch.
      uncond_BV: float [..., V], logits of the unconditional branch.
      scale: 1 gives the conditional log-probabilities, 0 the unconditional ones, above 1 pushes
        away from the unconditional branch.

    Returns:
      float32 [..., V]. These are scores: normalised only if scale is 0 or 1.
    """
    cond_BV = jax.nn.log_softmax(cond_BV.astype(jnp.float32), axis=-1)
    uncond_BV = jax.nn.log_softmax(uncond_BV.astype(jnp.float32), axis=-1)
    return uncond_BV + scale * (cond_BV - uncond_BV)


def interleave(cond_B: jax.Array, uncond_B: jax.Array) -> jax.Array:
    """Rows c0 u0 c1 u1 …: both branches of a request are on one device when rows are sharded."""
    pairs = jnp.stack([cond_B, uncond_B], axis=1)
    return pairs.reshape(-1, *cond_B.shape[1:])


def guide_interleaved(logits_2BV: jax.Array, guided_B: jax.Array, scale: jax.Array) -> jax.Array:
    """Guided scores float32 [B, V] of interleaved rows; unguided rows keep their logits.

    `guided_B` is bool: False for a request without a negative prompt, whose second row is a
    stand-in that is not used.
    """
    pairs_B2V = logits_2BV.reshape(-1, 2, logits_2BV.shape[-1]).astype(jnp.float32)
    cond_BV, uncond_BV = pairs_B2V[:, 0], pairs_B2V[:, 1]
    return jnp.where(guided_B[:, None], guide(cond_BV, uncond_BV, scale), cond_BV)
