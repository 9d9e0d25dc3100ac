"""The Pallas kernels for TPU that come with JAX ("splash" attention), with our own schedule.

The kernels visit blocks of queries and keys and read two small tables: whether a block is computed
at all, and which one to load next. JAX fills the tables from a mask that is known at trace time.
Here they are filled at run time, from the positions and documents of the tokens: a block above the
diagonal, or without a document in common, is neither loaded nor computed. Inside a block the kernel
compares positions and documents.

The kernels have no dropout on probabilities.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo

from emu3_jax.models.language.attention_kernels.mesh import Part, over_mesh
from emu3_jax.models.language.attention_kernels.reference import zero_blind_rows

LARGEST_BLOCK = 512  # the scores of 512 x 512 in float32 are 1 MiB of the 16 MiB of fast memory
SMALLEST_BLOCK = 128  # lanes of the vector unit


def splash(
    q_BSNH, k_BSKH, v_BSKH, segment_ids_BS, dropout=0.0, dropout_key=None, *, interpret=False
):
    """Attention in fast memory on a TPU; arguments as in IMPLEMENTATIONS.

    Queries, not scores, are scaled, and then rounded once more. Products of float32 inputs have the
    precision of `jax_default_matmul_precision`.

    Args:
        interpret: run the kernels in Pallas's interpreter, slowly, on any machine.
    """
    del dropout_key
    if dropout > 0.0:
        raise ValueError("attention='splash' has no dropout on probabilities; use 'blockwise'")
    attend = functools.partial(_attend, interpret=interpret)
    return over_mesh(attend, q_BSNH, k_BSKH, v_BSKH, segment_ids_BS)


def _attend(q_BSNH, k_BTKH, v_BTKH, q_segments, k_segments, part: Part, key, *, interpret):
    """Attention of one device's part, its rows concatenated; arguments as in `over_mesh`."""
    del key
    batch, queries, heads, dim = q_BSNH.shape
    q_block = _block(queries // part.chunk_starts.shape[1])
    k_block = _block(k_BTKH.shape[1])

    # Queries that pad the last block attend to the same keys as the last query, since a query that
    # attends to nothing has no softmax. Keys that pad the last block come after all queries.
    scaled = q_BSNH.astype(jnp.float32) * dim**-0.5
    q = _join(scaled.astype(q_BSNH.dtype), q_block)
    k, v = _join(k_BTKH, k_block), _join(v_BTKH, k_block)
    segments = _fill(q_segments, q_block), _fill(k_segments, k_block)
    positions = _fill(part.positions(queries)[None], q_block)[0]
    by_queries, by_keys = _schedule(positions, *segments, q_block, k_block)
    kernel = kernels.SplashAttentionKernel(
        by_queries,
        by_queries,
        by_keys,
        block_sizes=kernels.BlockSizes(*[q_block, k_block, k_block] * 2, q_block, k_block),
        is_mqa=False,
        save_residuals=False,
        mask_value=kernels.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name="attention",
        mask_function=_causal,
        interpret=interpret,
    )
    out = kernel(q, k, v, kernels.SegmentIds(*(a.reshape(-1) for a in segments)))
    out_BSNH = jnp.moveaxis(out.reshape(heads, batch, -1, dim), 0, 2)[:, :queries]
    return zero_blind_rows(out_BSNH, q_segments != 0)


def _block(length: int) -> int:
    """The largest of 128, 256 and 512 that divides the length, or 128."""
    return max(math.gcd(length, LARGEST_BLOCK), SMALLEST_BLOCK)


def _fill(x_BS, block: int):
    """Repeats the last entry of each row up to a multiple of `block`."""
    padding = [(0, 0)] * x_BS.ndim
    padding[1] = (0, -x_BS.shape[1] % block)
    return jnp.pad(x_BS, padding, mode="edge")


def _join(x_BSNH, block: int):
    """[B, S, N, H] -> [N, padded rows concatenated, H]."""
    x = jnp.moveaxis(_fill(x_BSNH, block), 2, 0)
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _causal(queries, keys):
    return queries >= keys


def _schedule(positions_S, q_segments_BS, k_segments_BT, q_block, k_block):
    """The kernel's tables for concatenated rows of I blocks of queries and J of keys each.

    Returns:
        MaskInfo for the kernels that visit, for each block of queries, the J blocks of keys of
        its row, and for the one that visits, for each block of keys, the I blocks of queries.
        Tables are int32 [1, B I, J] and [1, I, B J]; block numbers count through all rows.
    """
    batch, length = k_segments_BT.shape
    last_query_I = jnp.max(positions_S.reshape(-1, q_block), axis=1)
    first_key_J = jnp.arange(length // k_block) * k_block
    # Ranges of documents; a range may include absent documents, but never omits one.
    q_first_BI, q_last_BI = _range(q_segments_BS, q_block)
    k_first_BJ, k_last_BJ = _range(k_segments_BT, k_block)
    in_common = (q_first_BI[:, :, None] <= k_last_BJ[:, None]) & (
        k_first_BJ[:, None] <= q_last_BI[:, :, None]
    )
    computed_BIJ = (last_query_I[:, None] >= first_key_J) & in_common

    def load(axis):
        """Number of each block to load; for a block that is not computed, the first one that is,
        so that nothing new is loaded."""
        own = jax.lax.broadcasted_iota(jnp.int32, computed_BIJ.shape, axis)
        first = jnp.argmax(computed_BIJ, axis=axis, keepdims=True).astype(jnp.int32)
        row = jax.lax.broadcasted_iota(jnp.int32, computed_BIJ.shape, 0)
        return jnp.where(computed_BIJ, own, first) + row * computed_BIJ.shape[axis]

    def by_queries(x_BIJ):
        return x_BIJ.reshape(1, -1, first_key_J.size)

    def by_keys(x_BIJ):
        return jnp.swapaxes(x_BIJ, 0, 1).reshape(1, last_query_I.size, -1)

    # The kernels count keys through all rows, so queries are counted alike.
    count = (jnp.arange(batch, dtype=jnp.int32)[:, None] * length + positions_S).reshape(-1)
    mask = computed_BIJ.astype(jnp.int32)
    return (
        MaskInfo(by_queries(load(axis=2)), None, by_queries(mask), None, count),
        MaskInfo(by_keys(load(axis=1)), None, by_keys(mask), None, count),
    )


def _range(segments_BS, block):
    """Lowest and highest document of each block; padding counts as the highest."""
    segments = jnp.where(segments_BS == 0, np.iinfo(np.int32).max, segments_BS)
    segments = segments.reshape(segments.shape[0], -1, block)
    return jnp.min(segments, axis=2), jnp.max(segments, axis=2)
