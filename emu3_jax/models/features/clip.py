"""CLIP's two vision-transformer towers as pure functions: images and captions in one space.

Radford et al. 2021 (arXiv 2103.00020), section 2.4, as OpenAI's, OpenCLIP's and transformers' code
compute it. `interop.vision.clip_weights` reads released files into this tree of arrays:

  {"image": {"patches": [patch * patch * 3, W], "class": [W], "positions": [1 + N, W],
             "norm_before": norm, "layers": layers, "norm_after": norm, "projection": [W, D]},
   "text": {"tokens": [V, W], "positions": [S, W], "layers": layers, "norm_after": norm,
            "projection": [W, D]},
   "logit_scale": []}     the log of what multiplies cosines

A norm is {"scale": [W], "bias": [W]}. `layers` is one tree with the layers on the first axis:
norms "norm1" and "norm2", and {"kernel": [I, O], "bias": [O]} for "qkv" (O = 3 W), "out", "up" and
"down".
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from emu3_jax.models.language.layers import precision

ACTIVATIONS = {
    # The sigmoid approximation of OpenAI's models; torch's GELU is the exact one.
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


@dataclasses.dataclass(frozen=True)
class Tower:
    """Sizes of one transformer.

    Attributes:
      width: channels of the residual stream.
      layers: number of layers.
      heads: of attention; they divide the width.
      hidden: channels between the two matmuls of a layer.
      activation: a name in ACTIVATIONS.
      epsilon: of LayerNorm; 1e-5 in every released model.
    """

    width: int
    layers: int
    heads: int
    hidden: int
    activation: str
    epsilon: float = 1e-5

    def __post_init__(self):
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"the activation must be one of {', '.join(ACTIVATIONS)}, found {self.activation!r}"
            )


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Sizes of a CLIP.

    Attributes:
      image, text: the towers.
      side: height and width of its images in pixels.
      patch: side of a patch in pixels; divides `side`.
      context: tokens of a caption, with its first and last mark.
      vocabulary: number of token ids.
      embedding: dimensions of the common space.
      end: id of the mark after a caption, whose first place gives the embedding; None takes the
        first place of the largest id, which is that mark in OpenAI's vocabulary.
    """

    image: Tower
    text: Tower
    side: int
    patch: int
    context: int
    vocabulary: int
    embedding: int
    end: int | None = None

    def __post_init__(self):
        if self.end is not None and not 0 <= self.end < self.vocabulary:
            raise ValueError(
                f"the mark of the end has the id {self.end}, which is not one of {self.vocabulary}"
            )


def image_hidden(config: ClipConfig, weights, pixels_BHWC: jax.Array) -> jax.Array:
    """The image tower before its last norm.

    Args:
      config: sizes.
      weights: the tree above.
      pixels_BHWC: float [B, side, side, 3], red, green, blue, normalised as the model was trained;
        its type is that of the computation. With float32 every matmul has full precision.

    Returns:
      float [B, 1 + N, W], the class token first, then the patches row by row.

    Raises:
      ValueError: the images have another size.
    """
    B, *shape = pixels_BHWC.shape
    side, patch, tree = config.side, config.patch, weights["image"]
    if shape != [side, side, 3]:
        raise ValueError(f"this CLIP reads images [{side}, {side}, 3], found {shape}")
    dtype, rows = pixels_BHWC.dtype, side // patch
    x = pixels_BHWC.reshape(B, rows, patch, rows, patch, 3).swapaxes(2, 3)
    x = _matmul(x.reshape(B, rows * rows, patch * patch * 3), tree["patches"])
    first = jnp.broadcast_to(tree["class"].astype(dtype), (B, 1, config.image.width))
    x = jnp.concatenate([first, x], axis=1) + tree["positions"].astype(dtype)
    x = _norm(x, tree["norm_before"], config.image.epsilon)
    return _transformer(config.image, tree["layers"], x)


def image_embeddings(config: ClipConfig, weights, pixels_BHWC: jax.Array) -> jax.Array:
    """float32 [B, D], not normalised; arguments and errors as in `image_hidden`."""
    tree = weights["image"]
    x = image_hidden(config, weights, pixels_BHWC)[:, 0]
    x = _norm(x, tree["norm_after"], config.image.epsilon)
    return _matmul(x, tree["projection"]).astype(jnp.float32)


def text_hidden(
    config: ClipConfig, weights, ids_BS: jax.Array, dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """The text tower after its last norm.

    Args:
      config: sizes.
      weights: the tree above.
      ids_BS: int [B, S], S at most `config.context`, each below `config.vocabulary`. Attention is
        causal, so what follows the mark of the end does not change the embedding.
      dtype: of the computation.

    Returns:
      float [B, S, W].

    Raises:
      ValueError: rows longer than the context.
    """
    tree, length = weights["text"], ids_BS.shape[1]
    if length > config.context:
        raise ValueError(f"this CLIP reads {config.context} tokens, found {length}")
    x = (tree["tokens"][ids_BS] + tree["positions"][:length]).astype(dtype)
    causal = jnp.tril(jnp.ones((length, length), bool))
    x = _transformer(config.text, tree["layers"], x, causal)
    return _norm(x, tree["norm_after"], config.text.epsilon)


def text_embeddings(
    config: ClipConfig, weights, ids_BS: jax.Array, dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """float32 [B, D], not normalised; arguments and errors as in `text_hidden`."""
    x = text_hidden(config, weights, ids_BS, dtype)
    pooled = x[jnp.arange(len(x)), end_positions(config, ids_BS)]
    return _matmul(pooled, weights["text"]["projection"]).astype(jnp.float32)


def end_positions(config: ClipConfig, ids_BS: jax.Array) -> jax.Array:
    """int [B]: the place of each row's mark of the end, as `ClipConfig.end` states."""
    marks = ids_BS if config.end is None else ids_BS == config.end
    return jnp.argmax(marks, axis=1)


def projected(weights, tower: str, hidden: jax.Array) -> jax.Array:
    """Every token of a tower ("image" or "text") in the common space: [B, S, W] → [B, S, D]."""
    return _matmul(hidden, weights[tower]["projection"])


def _transformer(tower: Tower, layers, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    activation = ACTIVATIONS[tower.activation]

    def layer(x, weights):
        normed = _norm(x, weights["norm1"], tower.epsilon)
        mixed = _attention(_linear(normed, weights["qkv"]), tower.heads, mask)
        x = x + _linear(mixed, weights["out"])
        hidden = _linear(_norm(x, weights["norm2"], tower.epsilon), weights["up"])
        return x + _linear(activation(hidden), weights["down"]), None

    return lax.scan(layer, x, layers)[0]


def _attention(qkv_BSF: jax.Array, heads: int, mask_SS: jax.Array | None) -> jax.Array:
    B, S, _ = qkv_BSF.shape
    query, key, value = jnp.moveaxis(qkv_BSF.reshape(B, S, 3, heads, -1), 2, 0)
    exact = precision(query.dtype)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision=exact).astype(jnp.float32)
    scores *= query.shape[-1] ** -0.5
    if mask_SS is not None:
        scores = jnp.where(mask_SS, scores, -jnp.inf)
    shares = jax.nn.softmax(scores).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", shares, value, precision=exact).reshape(B, S, -1)


def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(x, kernel.astype(x.dtype), precision=precision(x.dtype))


def _linear(x: jax.Array, layer) -> jax.Array:
    return _matmul(x, layer["kernel"]) + layer["bias"].astype(x.dtype)


def _norm(x: jax.Array, norm, epsilon: float) -> jax.Array:
    """LayerNorm in float32, rounded to the type of x."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    gain = lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
    return (centred * gain * norm["scale"] + norm["bias"]).astype(x.dtype)
