"""What turns CLIP's embeddings into scores of images: cosines, PickScore, LAION's aesthetics.

The constants are in the released weights. Arrays are float; results are float32.
"""

import jax
import jax.numpy as jnp

from emu3_jax.models.language.layers import precision


def unit_length(x: jax.Array) -> jax.Array:
    """[..., D] divided by its length; a row of zeros stays zero."""
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.where(length == 0, 1, length)


def cosines(texts: jax.Array, images: jax.Array) -> jax.Array:
    """[..., D] and [..., D], broadcast → [...]: CLIP's similarity, and what HPSv2 gives.

    HPSv2 (tgxs002/HPSv2, img_score.py) has no scale; its benchmark prints 100 times this number.
    """
    return jnp.sum(unit_length(texts) * unit_length(images), axis=-1)


def pick_scores(texts: jax.Array, images: jax.Array, logit_scale: jax.Array) -> jax.Array:
    """[..., D], [..., D] and a scalar → [...]: PickScore, e^scale times the cosine.

    Kirstain et al. 2023 (arXiv 2305.01569), section 4. `probabilities` compares the candidates of
    one prompt.
    """
    return jnp.exp(logit_scale) * cosines(texts, images)


def probabilities(scores: jax.Array) -> jax.Array:
    """[..., N] PickScores (or MPS) of the candidates of one prompt → their shares, summing to 1."""
    return jax.nn.softmax(scores, axis=-1)


def aesthetic_scores(head, images: jax.Array) -> jax.Array:
    """LAION's aesthetic predictor, version 2: some 1 to 10.

    Its five layers have no activations between them (improved-aesthetic-predictor,
    simple_inference.py), so `interop.vision.aesthetic_head` hands over one affine map.

    Args:
      head: {"kernel": [D], "bias": []}.
      images: [..., D] embeddings of OpenAI's ViT-L/14 as they come out of the tower.

    Returns:
      [...].
    """
    images = unit_length(images)
    exact = precision(images.dtype)
    return jnp.matmul(images, head["kernel"], precision=exact) + head["bias"]
