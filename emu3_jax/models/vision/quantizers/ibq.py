"""Index backpropagation: all entries of the table learn from every latent."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from emu3_jax.models.vision.quantizers.codebook import table
from emu3_jax.models.vision.quantizers.gradients import straight_through
from emu3_jax.models.vision.quantizers.quantized import (
    ENTROPY_TEMPERATURE,
    Quantized,
    codebook_loss,
    commitment_loss,
    entropy,
)
from emu3_jax.models.vision.quantizers.search import (
    aligned_codes,
    in_blocks,
    out_of_blocks,
    products,
)
from emu3_jax.models.vision.tokenizer_config import VisionTokenizerConfig


class IndexBackpropagation(nn.Module):
    """The entry with the largest inner product, IBQ (Shi et al. 2024, arXiv 2412.02692).

    With p = softmax(E x), the vector is E' (onehot(argmax p) + p - stop(p)): its values are one
    entry, its gradient reaches the chosen row directly and, through p, all rows and the latent.
    The published double quantisation loss is |stop(q) - x|^2 + beta |q - stop(x)|^2 of the entry
    q, plus |v - x|^2 of the vector v above. Here "commitment" is the first and the last term,
    "codebook" the middle one, and "entropy" that of softmax(E x / 0.01): mean entropy of a latent
    minus entropy of the mean. Published weights: 1, beta = 0.25 and 0.05 (SEED-Voken,
    src/IBQ/modules/vqvae/quantize.py and configs/IBQ). Lengths matter: at the position of a short
    entry, a longer one may win.
    """

    config: VisionTokenizerConfig

    def setup(self):  # noqa: D102 (linen's hook)
        self.embedding = table(self, jax.nn.initializers.normal(1.0))  # as torch's Embedding

    def codes(self, latents: jax.Array) -> jax.Array:
        """float [..., D] -> int32 [...]; no gradient flows through the choice."""
        return aligned_codes(jax.lax.stop_gradient(latents), self.embedding)

    def entries(self, codes: jax.Array) -> jax.Array:
        """int [...] in [0, N) -> float32 [..., D]; the gradient reaches the table."""
        return jnp.take(self.embedding, codes, axis=0).astype(jnp.float32)

    def __call__(self, latents: jax.Array) -> Quantized:
        """Quantises float [..., D]."""
        latents = latents.astype(jnp.float32)
        codes = self.codes(latents)
        entries = self.entries(codes)
        soft_PD, certainty, mean_N = softly_chosen(
            latents.reshape(-1, latents.shape[-1]), self.embedding.astype(jnp.float32)
        )
        # Two gradients: of the chosen row, and through p.
        through_choice = straight_through(soft_PD.reshape(entries.shape), jnp.zeros_like(entries))
        vectors = entries + through_choice
        losses = {
            "commitment": commitment_loss(latents, entries)
            + jnp.mean(jnp.square(vectors - latents)),
            "codebook": codebook_loss(latents, entries),
            "entropy": certainty - entropy(mean_N),
        }
        return Quantized(codes, vectors, losses)


def softly_chosen(x_PD: jax.Array, table_ND: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums over all entries, block by block; the backward pass computes probabilities again.

    Args:
      x_PD: float32 latents.
      table_ND: float32 entries.

    Returns:
      Mean entries by the probabilities p of each latent [P, D], with a gradient through p alone;
      then at ENTROPY_TEMPERATURE: the mean entropy of a latent in nats, and the mean probability
      of each entry [N].
    """
    P, N = x_PD.shape[0], table_ND.shape[0]
    fixed_DN = jax.lax.stop_gradient(table_ND).T
    real = in_blocks(jnp.ones((P, 1), jnp.float32), N)

    @jax.checkpoint
    def block(total_N, inputs):
        x_PD, real_P1 = inputs
        scores_PN = products(x_PD, table_ND)
        soft_PD = products(jax.nn.softmax(scores_PN), fixed_DN)
        logs_PN = jax.nn.log_softmax(scores_PN / ENTROPY_TEMPERATURE)
        shares_PN = jnp.exp(logs_PN) * real_P1
        return total_N + jnp.sum(shares_PN, axis=0), (soft_PD, -jnp.sum(shares_PN * logs_PN))

    total_N, (soft, entropies) = jax.lax.scan(block, jnp.zeros(N), (in_blocks(x_PD, N), real))
    return out_of_blocks(soft, P), jnp.sum(entropies) / P, total_N / P
