"""cuDNN's fused attention, through `jax.nn.dot_product_attention`.

It stores no scores. It takes documents as a mask, which costs 2 S^2 bytes per row in bfloat16
(shared by all heads). Its kernel computes masked scores as well, but nothing above the diagonal. It
has no dropout on probabilities here and cannot shard rows over `context`.
"""

import jax
from jax.ad_checkpoint import checkpoint_name

from emu3_jax.models.language.attention_kernels.reference import zero_blind_rows


def cudnn(q_BSNH, k_BSKH, v_BSKH, segment_ids_BS, dropout=0.0, dropout_key=None):
    """Attention by cuDNN on an NVIDIA GPU, bfloat16 or float16; arguments as in IMPLEMENTATIONS."""
    del dropout_key
    if dropout > 0.0:
        raise ValueError("attention='cudnn' has no dropout on probabilities; use 'blockwise'")
    # Padding attends to padding: a query that attends to nothing has no softmax.
    same_BST = segment_ids_BS[:, :, None] == segment_ids_BS[:, None, :]
    out = jax.nn.dot_product_attention(
        q_BSNH,
        k_BSKH,
        v_BSKH,
        mask=same_BST[:, None],
        is_causal=True,
        implementation="cudnn",
    )
    out = zero_blind_rows(out, segment_ids_BS != 0)
    return checkpoint_name(out, "attention")
