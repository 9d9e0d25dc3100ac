"""MPS: a score of an image for a caption under a condition, from the tokens of a CLIP.

Zhang et al. 2024 (arXiv 2405.14705), section 4.2, as in Kwai-Kolors/MPS: the image's tokens attend
to those of the caption that a condition ("light, color, …") selects. Weights are a tuple of layers:

  {"cross": {"norm": norm, "query": [D, heads * d], "key_value": [D, 2 d], "out": [heads * d, D],
             "up": [D, 2 H], "down": [H, D]},
   "own": {"norm": norm, "fused": [D, heads * d + 2 d + 2 H], "attention_out": [heads * d, D],
           "down": [H, D], "frequencies": [d / 2]}}

A norm is {"scale": [D], "bias": [D]}. All heads share one key and one value.
"""

import jax
import jax.numpy as jnp
from jax import lax

from emu3_jax.models.features.preference_heads import unit_length
from emu3_jax.models.language.layers import precision

EPSILON = 1e-5  # torch's LayerNorm
# A token of the caption counts if it is nearer to the condition than this share of the nearest
# one's similarity: in the released evaluation, and in the released model's own `forward`.
EVALUATION_SHARE, FORWARD_SHARE = 0.3, 0.01


def selected(text_SD: jax.Array, condition_CD: jax.Array, share: float) -> jax.Array:
    """bool [..., S]: the tokens of [..., S, D] that a condition [..., C, D] selects.

    Similarities are divided by the largest of this caption. The released code divides by that of
    the batch, so that its scores depend on the batch; its evaluation has one caption in each.
    """
    nearest = _einsum("...sd,...cd->...cs", text_SD, condition_CD).max(-2)
    return nearest / nearest.max(-1, keepdims=True) > share


def scores(
    weights, text_SD, text_end_D, condition_CD, images_ND, logit_scale, share=EVALUATION_SHARE
) -> jax.Array:
    """MPS of images for a caption each; all arrays are float, with equal leading dimensions.

    Args:
      weights: the tuple above.
      text_SD: [..., S, D] projected tokens of the caption with its marks and padding.
      text_end_D: [..., D] the caption's embedding.
      condition_CD: [..., C, D] projected tokens of the condition.
      images_ND: [..., N, D] projected tokens of the image, before the image tower's last norm.
      logit_scale: scalar.
      share: see `selected`.

    Returns:
      [...]; the softmax over the candidates of a caption gives shares.
    """
    x, mask_S = images_ND, selected(text_SD, condition_CD, share)
    for layer in weights:
        x = x + _cross(layer["cross"], x, text_SD, mask_S)
        x = x + _own(layer["own"], x)
    cosine = jnp.sum(unit_length(x[..., 0, :]) * unit_length(text_end_D), axis=-1)
    return jnp.exp(logit_scale) * cosine


def _cross(weights, x, context, mask_S):
    x = _norm(x, weights["norm"])
    key, value = jnp.split(_matmul(context, weights["key_value"]), 2, axis=-1)
    query = _heads(_matmul(x, weights["query"]), key.shape[-1])
    mixed = _attention(query, key, value, mask_S[..., None, None, :])
    return _matmul(mixed, weights["out"]) + _matmul(
        _gated(_matmul(x, weights["up"])), weights["down"]
    )


def _own(weights, x):
    width, size = weights["attention_out"].shape[0], 2 * weights["frequencies"].shape[0]
    fused = _matmul(_norm(x, weights["norm"]), weights["fused"])
    query, key, value, hidden = jnp.split(fused, [width, width + size, width + 2 * size], axis=-1)
    angles = jnp.outer(jnp.arange(x.shape[-2]), weights["frequencies"])
    angles = jnp.concatenate([angles, angles], axis=-1)
    query = _rotated(_heads(query, size), angles)
    mixed = _attention(query, _rotated(key, angles), value)
    return _matmul(mixed, weights["attention_out"]) + _matmul(_gated(hidden), weights["down"])


def _heads(x, size):
    """[..., N, heads * d] → [..., heads, N, d]."""
    return jnp.moveaxis(x.reshape(*x.shape[:-1], -1, size), -2, -3)


def _attention(query, key, value, mask=True):
    """[..., heads, N, d], [..., S, d], [..., S, d] → [..., N, heads * d]."""
    weighed = _einsum("...hnd,...sd->...hns", query * query.shape[-1] ** -0.5, key)
    shares = jax.nn.softmax(jnp.where(mask, weighed, -jnp.inf))
    mixed = jnp.moveaxis(_einsum("...hns,...sd->...hnd", shares, value), -3, -2)
    return mixed.reshape(*mixed.shape[:-2], -1)


def _rotated(x, angles):
    first, second = jnp.split(x, 2, axis=-1)
    return x * jnp.cos(angles) + jnp.concatenate([-second, first], axis=-1) * jnp.sin(angles)


def _gated(x):
    value, gate = jnp.split(x, 2, axis=-1)
    return jax.nn.silu(gate) * value


def _norm(x, norm):
    centred = x - x.mean(-1, keepdims=True)
    gain = lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + EPSILON)
    return centred * gain * norm["scale"] + norm["bias"]


def _matmul(x, kernel):
    return jnp.matmul(x, kernel, precision=precision(x.dtype))


def _einsum(letters, a, b):
    return jnp.einsum(letters, a, b, precision=precision(a.dtype))
