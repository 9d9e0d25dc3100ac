"""What a quantizer hands back, and the losses that several of them share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Inside the logarithm of a mean probability, whose gradient would be infinite where none of the
# latents is near an entry. It lowers an entropy by at most N * 1e-10 nats.
SMALL = 1e-10
# Of the softmax in the entropy loss: MAGVIT's `entropy_loss` (google-research/magvit,
# train_lib/losses.py), kept by Open-MAGVIT2 and by IBQ.
ENTROPY_TEMPERATURE = 0.01


class Quantized(NamedTuple):
    """Latents after quantisation.

    Attributes:
      codes: int32 [...] in [0, codebook_size).
      vectors: float32 [..., D], the entries of the codes: what is decoded. Their gradient reaches
        the latents in the quantizer's own way.
      losses: name -> float32 scalar without a weight, a mean over all latents. "commitment" pulls
        latents to entries, "codebook" pulls entries to latents, "entropy" asks for sure choices
        that differ from one another. A quantizer has only those that it needs.
    """

    codes: jax.Array
    vectors: jax.Array
    losses: dict[str, jax.Array]


def commitment_loss(latents: jax.Array, entries: jax.Array) -> jax.Array:
    """Mean squared distance that pulls the latents to their entries; float32 scalar."""
    return jnp.mean(jnp.square(latents - jax.lax.stop_gradient(entries)))


def codebook_loss(latents: jax.Array, entries: jax.Array) -> jax.Array:
    """Mean squared distance that pulls the entries to their latents; float32 scalar."""
    return jnp.mean(jnp.square(jax.lax.stop_gradient(latents) - entries))


def entropy(shares_N: jax.Array) -> jax.Array:
    """In nats, of probabilities that add up to one, with a finite gradient at zero."""
    return -jnp.sum(shares_N * jnp.log(shares_N + SMALL))
