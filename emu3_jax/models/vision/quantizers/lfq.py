"""Lookup-free quantisation: every dimension of a latent is one bit of its code."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from emu3_jax.models.vision.quantizers.gradients import straight_through
from emu3_jax.models.vision.quantizers.quantized import (
    ENTROPY_TEMPERATURE,
    Quantized,
    commitment_loss,
    entropy,
)
from emu3_jax.models.vision.tokenizer_config import VisionTokenizerConfig

# Up to MAGVIT-v2's own 2**18 codes, the entropy of the batch is that of all bits together. Beyond,
# it is the sum over groups of bits of similar size: an upper bound, exact for independent groups.
JOINT_BITS = 18


class LookupFree(nn.Module):
    """Signs of the latents, MAGVIT-v2 (Yu et al. 2023, arXiv 2310.05737, section 3.1).

    D = log2(N). Bit i of a code, with weight 2^i, is set where latent i is above zero; the entry
    has 1 there and -1 elsewhere. No parameters. Losses: "commitment", and "entropy", the mean
    entropy of a latent minus the entropy of the mean, of probabilities softmax(2 x.e / 0.01) over
    all N entries e. They are products over bits, sigmoid(4 x_i / 0.01) for a bit to be set.
    """

    config: VisionTokenizerConfig

    def codes(self, latents: jax.Array) -> jax.Array:
        """float [..., D] -> int32 [...]."""
        weights_D = 2 ** jnp.arange(self.config.embed_dim, dtype=jnp.int32)
        return jnp.sum((latents > 0) * weights_D, axis=-1, dtype=jnp.int32)

    def entries(self, codes: jax.Array) -> jax.Array:
        """int [...] in [0, N) -> float32 [..., D] of 1 and -1."""
        bits = (codes[..., None] >> jnp.arange(self.config.embed_dim)) & 1
        return 2.0 * bits.astype(jnp.float32) - 1.0

    def __call__(self, latents: jax.Array) -> Quantized:
        """Quantises float [..., D]."""
        latents = latents.astype(jnp.float32)
        codes = self.codes(latents)
        entries = self.entries(codes)
        logits_PD = 4.0 / ENTROPY_TEMPERATURE * latents.reshape(-1, latents.shape[-1])
        losses = {
            "commitment": commitment_loss(latents, entries),
            "entropy": mean_entropy(logits_PD) - entropy_of_mean(logits_PD),
        }
        return Quantized(codes, straight_through(latents, entries), losses)


def mean_entropy(logits_PD: jax.Array) -> jax.Array:
    """Nats per latent, from the logits of its bits: the sum over bits, which are independent."""
    size = jnp.abs(logits_PD)
    bits_PD = jnp.log1p(jnp.exp(-size)) + size * jax.nn.sigmoid(-size)
    return jnp.mean(jnp.sum(bits_PD, axis=-1))


def entropy_of_mean(logits_PD: jax.Array) -> jax.Array:
    """Nats of the mean probabilities of the codes over all P latents; see JOINT_BITS."""
    groups = -(-logits_PD.shape[1] // JOINT_BITS)
    return sum(_joint_entropy(part) for part in jnp.array_split(logits_PD, groups, axis=1))


def _joint_entropy(logits_PD):
    # Half of the bits make rows, half make columns: their mean outer product over the latents is
    # one matmul, and [P, 2^D] never exists.
    low, high = map(_joint, jnp.array_split(logits_PD, 2, axis=1))
    mean = jnp.matmul(low.T, high, precision=jax.lax.Precision.HIGHEST) / logits_PD.shape[0]
    return entropy(mean)


def _joint(logits_PD):
    """Probabilities of all values of D bits, [P, 2^D]."""
    shares = jnp.ones((logits_PD.shape[0], 1), jnp.float32)
    for i in range(logits_PD.shape[1]):
        logit_P1 = logits_PD[:, i : i + 1]
        unset, is_set = jax.nn.sigmoid(-logit_P1), jax.nn.sigmoid(logit_P1)
        shares = jnp.concatenate([shares * unset, shares * is_set], axis=1)
    return shares
