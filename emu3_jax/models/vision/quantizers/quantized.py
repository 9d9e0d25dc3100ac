"""The output of quantizers, and the losses that several of them share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Inside the logarithm of a mean probability, whose gradient is infinite if no latent is near an
# entry. It lowers an entropy by at most N * 1e-10 nats.
SMALL = 1e-10
# Temperature of the softmax in the entropy loss: MAGVIT's `entropy_loss` (google-research/magvit,
# train_lib/losses.py), kept by Open-MAGVIT2 and by IBQ.
ENTROPY_TEMPERATURE = 0.01


class Quantized(NamedTuple):
    """Latents after quantisation.

    Attributes:
      codes: int32 [...] in [0, codebook_size).
      vectors: float32 [..., D], the entries of the codes, which are decoded. How their gradient
        reaches the latents depends on the quantizer.
      losses: name -> float32 scalar without a weight, a mean over all latents. "commitment" pulls
        latents to entries, "codebook" pulls entries to latents, "entropy" rewards confident choices
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
    """Entropy in nats of probabilities that sum to one, with a finite gradient at zero."""
    return -jnp.sum(shares_N * jnp.log(shares_N + SMALL))
