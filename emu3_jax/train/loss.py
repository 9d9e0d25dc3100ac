"""Next-token cross-entropy that never holds the logits of more than a few positions.

At 184,622 ids the logits of one row of 5,120 tokens are 3.8 GB in float32. Here positions are
taken a chunk at a time, and the backward pass computes each chunk's logits once more: 1/4 more
work in the vocabulary matmul for memory that does not grow with the length of the row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emu3_jax.models.layers import precision
from emu3_jax.sharding import constrain

MASKED = -1e30


class CrossEntropy(NamedTuple):
    """Sums for the loss, and what they were summed from.

    Attributes:
        total: float32 scalar, sum of weight x (nll + z-loss). The loss is total / weight, taken
            after micro-batches were added up.
        weight: float32 scalar, sum of weights.
        nll: float32 [B, S], -log p(target), without z-loss and not weighted.
    """

    total: jax.Array
    weight: jax.Array
    nll: jax.Array


def chunked_cross_entropy(
    x_BSD: jax.Array,
    unembedding_DV: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    vocab_size: int,
    chunk_tokens: int = 512,
    z_loss: float = 0.0,
) -> CrossEntropy:
    """Weighted cross-entropy of hidden states times the vocabulary matrix.

    Args:
        x_BSD: output of `Transformer.hidden`; matmuls run in its dtype, the rest in float32.
        unembedding_DV: params["lm_head"]["kernel"], V >= vocab_size; the columns above get no
            probability and no gradient.
        targets: int [B, S]; any id below vocab_size where the weight is 0.
        weights: float [B, S] of each target.
        vocab_size: true number of ids.
        chunk_tokens: positions of each row whose logits exist at once (per device: of each row
            it holds). Rows are never gathered: a chunk spans the whole batch.
        z_loss: coefficient of log(Z)^2, which keeps the normaliser near 1 (0: none).
    """
    weights = weights.astype(jnp.float32)
    kernel_DV = constrain(unembedding_DV.astype(x_BSD.dtype), None, "vocab")

    # A loop over a cut sequence would move every chunk to one place. So rows are first laid out as
    # [parts, chunks, chunk], one part for each device of `context`, and the loop runs over chunks.
    parts = _context_size()
    length = x_BSD.shape[1]
    if length % parts:
        raise ValueError(
            f"sequence length={length} must be a multiple of mesh axis context={parts}"
        )
    chunk = min(chunk_tokens, length // parts)
    chunks = -(-(length // parts) // chunk)

    def split(a):
        """[B, S, …] -> [chunks, B, parts, chunk, …], zeros at the end of each part."""
        a = a.reshape(a.shape[0], parts, length // parts, *a.shape[2:])
        padding = [(0, 0)] * a.ndim
        padding[2] = (0, chunks * chunk - length // parts)
        a = jnp.pad(a, padding)
        return jnp.moveaxis(a.reshape(*a.shape[:2], chunks, chunk, *a.shape[3:]), 2, 0)

    def merge(a):
        """The inverse of `split`, for [chunks, B, parts, chunk]."""
        a = jnp.moveaxis(a, 0, 2).reshape(a.shape[1], parts, chunks * chunk)
        return a[:, :, : length // parts].reshape(a.shape[0], length)

    def one_chunk(_, inputs):
        x_BPCD, targets_BPC = inputs
        return None, _nll_and_log_z(x_BPCD, kernel_DV, targets_BPC, vocab_size)

    body = jax.checkpoint(one_chunk, prevent_cse=False)
    _, outputs = jax.lax.scan(body, None, (split(x_BSD), split(targets)))
    nll_BS, log_z_BS = (constrain(merge(a), "batch", "sequence") for a in outputs)
    loss_BS = nll_BS + z_loss * jnp.square(log_z_BS) if z_loss else nll_BS
    return CrossEntropy(jnp.sum(weights * loss_BS), jnp.sum(weights), nll_BS)


def _nll_and_log_z(x_BPCD, kernel_DV, targets_BPC, vocab_size):
    """-log p(target) and log of the normaliser, float32 [B, P, C] each."""
    x_BPCD = constrain(x_BPCD, "batch", "sequence", None, None)
    logits = jnp.einsum(
        "bpcd,dv->bpcv",
        x_BPCD,
        kernel_DV,
        precision=precision(x_BPCD.dtype),
        preferred_element_type=jnp.float32,
    )
    logits = constrain(logits, "batch", "sequence", None, "vocab")
    ids_V = jnp.arange(logits.shape[-1])
    logits = jnp.where(ids_V < vocab_size, logits, MASKED)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # A masked sum, not an index: each device of `tensor` finds the target among its own columns.
    target = jnp.sum(jnp.where(ids_V == targets_BPC[..., None], logits, 0.0), axis=-1)
    return log_z - target, log_z


def _context_size() -> int:
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["context"]
