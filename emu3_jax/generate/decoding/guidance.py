"""Classifier-free guidance over next-token scores: two branches, one formula.

The conditional branch reads the caption, the unconditional one the negative prompt (or nothing).
"""

import jax
import jax.numpy as jnp


def guide(cond_BV: jax.Array, uncond_BV: jax.Array, scale: jax.Array | float) -> jax.Array:
    """Mixes the branches: `u + scale * (c - u)`.

    The released inference code (the logits processor of transformers that it uses) mixes
    log-probabilities. Those of logits differ by a constant for each row, which no softmax sees.

    Args:
      cond_BV: float [..., V], logits of the conditional branch.
      uncond_BV: float [..., V], logits of the unconditional branch.
      scale: 1 gives the conditional logits, 0 the unconditional ones, above 1 pushes away from the
        unconditional branch.

    Returns:
      float32 [..., V].
    """
    cond_BV, uncond_BV = cond_BV.astype(jnp.float32), uncond_BV.astype(jnp.float32)
    return uncond_BV + scale * (cond_BV - uncond_BV)


def guide_pairs(logits_RV: jax.Array, guided_B: jax.Array, scale_B: jax.Array) -> jax.Array:
    """Guided scores float32 [B, ..., V] of R = 2 B rows c0 u0 c1 u1 …, each by its own scale.

    Both branches of a request are neighbours, so that they are on one device when rows are sharded.
    `guided_B` is bool: False for a request without a negative prompt, whose second row is a
    stand-in that is not used.
    """
    pairs_B2V = logits_RV.reshape(-1, 2, *logits_RV.shape[1:])
    cond_BV, uncond_BV = pairs_B2V[:, 0], pairs_B2V[:, 1]
    each = (-1, *(1,) * (cond_BV.ndim - 1))
    is_guided_BV = guided_B.reshape(each)
    guided_BV = guide(cond_BV, uncond_BV, scale_B.reshape(each))
    return jnp.where(is_guided_BV, guided_BV, cond_BV.astype(jnp.float32))
