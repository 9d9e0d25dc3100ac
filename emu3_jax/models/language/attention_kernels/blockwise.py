"""Attention in blocks of queries and keys, in plain JAX.

The forward pass keeps a running maximum, sum and weighted sum for each query (online softmax). It
stores the output and the log of the sum, from which the backward pass computes the scores of each
block again (FlashAttention-2, arXiv 2307.08691, algorithms 1 and 2). So memory grows with S, not
S^2. Blocks above the diagonal are not in the list of blocks to visit. Blocks in which no query and
key share a document are visited, but not computed.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from emu3_jax.models.language import layers
from emu3_jax.models.language.attention_kernels import probability_dropout
from emu3_jax.models.language.attention_kernels.mesh import Part, over_mesh
from emu3_jax.models.language.attention_kernels.reference import MASKED


class Blocks(NamedTuple):
    """Arrays that the loops over blocks share, besides queries, keys and values.

    I blocks of Q queries each, J blocks of T keys each, P pairs to visit.

    Attributes:
        pairs_P2: int32, index of a query block and of a key block; J is a block after the last
            one, to which no query attends.
        positions_IQ: int32, position of each query in its row.
        q_segments_IBQ, k_segments_JBT: document of each query and key, 0 for padding.
        part: the device's part of the whole batch, for dropout.
        key: for dropout, or None.
    """

    pairs_P2: jax.Array
    positions_IQ: jax.Array
    q_segments_IBQ: jax.Array
    k_segments_JBT: jax.Array
    part: Part
    key: jax.Array | None


def blockwise(q_BSNH, k_BSKH, v_BSKH, segment_ids_BS, dropout=0.0, dropout_key=None, *, block=512):
    """Attention in blocks of `block` queries and keys; arguments as in IMPLEMENTATIONS.

    Any length works: the last block of a row is filled up.
    """
    attend = functools.partial(_attend, rate=dropout, block=block)
    key = dropout_key if dropout > 0.0 else None
    return over_mesh(attend, q_BSNH, k_BSKH, v_BSKH, segment_ids_BS, key)


def pairs(chunk_starts, chunk: int, q_size: int, k_size: int) -> np.ndarray:
    """Blocks to visit on each device, int32 [devices, P, 2].

    A chunk of queries is split into ceil(chunk / q_size) blocks. A block needs the key blocks up to
    that of its last query. Shorter lists (possible only if blocks do not fill chunks) are padded
    with pairs to which no query attends.
    """
    blocks = -(-chunk // q_size)
    lists = []
    for starts in np.asarray(chunk_starts):
        ends = [min((r + 1) * q_size, chunk) for r in range(blocks)]
        needed = [(start + end - 1) // k_size + 1 for start in starts for end in ends]
        lists.append([(i, j) for i, count in enumerate(needed) for j in range(count)])
    behind = -(-chunk * np.asarray(chunk_starts).size // k_size)
    longest = max(map(len, lists))
    return np.array([row + [(0, behind)] * (longest - len(row)) for row in lists], np.int32)


def _attend(q_BSNH, k_BTKH, v_BTKH, q_segments, k_segments, part: Part, key, *, rate, block):
    """Attention of one device's part, in blocks; arguments as in `over_mesh`."""
    batch, queries, heads, dim = q_BSNH.shape
    length, kv_heads = k_BTKH.shape[1:3]
    chunks = part.chunk_starts.shape[1]
    chunk = queries // chunks
    q_size, k_size = min(block, chunk), min(block, length)

    def cut(a, chunks, size):
        """[B, S, ...] -> [blocks, B, size, ...], zeros at the end of each chunk."""
        a = a.reshape(a.shape[0], chunks, -1, *a.shape[2:])
        padding = [(0, 0)] * a.ndim
        padding[2] = (0, -a.shape[2] % size)
        a = jnp.pad(a, padding)
        return jnp.moveaxis(a.reshape(a.shape[0], -1, size, *a.shape[3:]), 1, 0)

    blocks = Blocks(
        jnp.asarray(pairs(part.chunk_starts, chunk, q_size, k_size))[part.device],
        cut(part.positions(queries)[None], chunks, q_size)[:, 0],
        cut(q_segments, chunks, q_size),
        cut(k_segments, 1, k_size),
        part._replace(chunk_starts=None),
        key,
    )
    q_BSKGH = q_BSNH.reshape(batch, queries, kv_heads, heads // kv_heads, dim)
    q = jnp.moveaxis(cut(q_BSKGH, chunks, q_size), 2, 4)  # [I, B, K, G, Q, H]
    k, v = (jnp.moveaxis(cut(a, 1, k_size), 2, 3) for a in (k_BTKH, v_BTKH))  # [J, B, K, T, H]
    out = jnp.moveaxis(_attention(q, k, v, blocks, rate), (0, 4), (1, 2))  # [B, I, Q, K, G, H]
    out = out.reshape(batch, chunks, -1, heads, dim)[:, :, :chunk]
    return out.reshape(q_BSNH.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q, k, v, blocks: Blocks, rate: float):
    """q [I, B, K, G, Q, H], k and v [J, B, K, T, H] -> like q."""
    return _forward(q, k, v, blocks, rate)[0]


def _forward(q, k, v, blocks: Blocks, rate):
    """Output like q, and float32 log-sum-exp of the scores of each query [I, B, K, G, Q]."""

    def visit(carry, pair):
        i, j = pair
        mask = _mask(blocks, i, j)

        def update(old):
            total, top, norm = old
            scores = _product("bkgqh,bkth->bkgqt", _at(q, i), _at(k, j)) * q.shape[-1] ** -0.5
            scores = jnp.where(mask, scores, MASKED)
            new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
            probs = jnp.where(mask, jnp.exp(scores - new_top[..., None]), 0.0)
            shrink = jnp.exp(top - new_top)
            norm = norm * shrink + jnp.sum(probs, axis=-1)
            if rate > 0.0:
                probs = probs * _keep(blocks, i, j, probs.shape, rate)
            added = _product("bkgqt,bkth->bkgqh", probs.astype(v.dtype), _at(v, j))
            return total * shrink[..., None] + added, new_top, norm

        return _update(carry, (i, i, i), jnp.any(mask), update), None

    start = (
        jnp.zeros(q.shape, jnp.float32),
        jnp.full(q.shape[:-1], MASKED, jnp.float32),
        jnp.zeros(q.shape[:-1], jnp.float32),
    )
    (total, top, norm), _ = jax.lax.scan(visit, start, blocks.pairs_P2)
    norm = jnp.where(norm > 0.0, norm, 1.0)  # padding attends to nothing and stays zero
    return (total / norm[..., None]).astype(q.dtype), top + jnp.log(norm)


def _attention_forward(q, k, v, blocks, rate):
    out, log_sum = _forward(q, k, v, blocks, rate)
    out = checkpoint_name(out, "attention")
    log_sum = checkpoint_name(log_sum, "attention")
    return out, (q, k, v, blocks, out, log_sum)


def _attention_backward(rate, residuals, d_out):
    q, k, v, blocks, out, log_sum = residuals
    # Softmax gradient: sum over keys of probability x its cotangent, for each query.
    pull = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    scale = q.shape[-1] ** -0.5

    def visit(carry, pair):
        i, j = pair
        mask = _mask(blocks, i, j)

        def update(old):
            dq, dk, dv = old
            q_i, k_j, v_j, d_out_i = _at(q, i), _at(k, j), _at(v, j), _at(d_out, i)
            scores = _product("bkgqh,bkth->bkgqt", q_i, k_j) * scale
            probs = jnp.where(mask, jnp.exp(scores - _at(log_sum, i)[..., None]), 0.0)
            d_probs = _product("bkgqh,bkth->bkgqt", d_out_i, v_j)
            weights = probs
            if rate > 0.0:
                keep = _keep(blocks, i, j, probs.shape, rate)
                weights, d_probs = probs * keep, d_probs * keep
            dv = dv + _product("bkgqt,bkgqh->bkth", weights.astype(v.dtype), d_out_i)
            d_scores = (probs * (d_probs - _at(pull, i)[..., None]) * scale).astype(q.dtype)
            dq = dq + _product("bkgqt,bkth->bkgqh", d_scores, k_j)
            dk = dk + _product("bkgqt,bkgqh->bkth", d_scores, q_i)
            return dq, dk, dv

        return _update(carry, (i, j, j), jnp.any(mask), update), None

    start = tuple(jnp.zeros(a.shape, jnp.float32) for a in (q, k, v))
    grads, _ = jax.lax.scan(visit, start, blocks.pairs_P2)
    dq, dk, dv = (grad.astype(a.dtype) for grad, a in zip(grads, (q, k, v), strict=True))
    return dq, dk, dv, None


_attention.defvjp(_attention_forward, _attention_backward)


def _at(blocks, index):
    """Block number `index`; the last block if that is past the end."""
    return jax.lax.dynamic_index_in_dim(blocks, index, keepdims=False)


def _update(carry, indices, needed, update):
    """Replaces one block of each array by `update` of them, or by itself if not `needed`."""
    old = tuple(_at(a, index) for a, index in zip(carry, indices, strict=True))
    new = jax.lax.cond(needed, update, lambda old: old, old)
    put = jax.lax.dynamic_update_index_in_dim
    return tuple(put(a, b, index, 0) for a, b, index in zip(carry, new, indices, strict=True))


def _product(formula, a, b):
    """Einsum in the type of its inputs, summed in float32."""
    exact = layers.precision(a.dtype)
    return jnp.einsum(formula, a, b, precision=exact, preferred_element_type=jnp.float32)


def _mask(blocks: Blocks, i, j):
    """bool [B, 1, 1, Q, T]: which queries of block i attend to which keys of block j."""
    q_segments_BQ, k_segments_BT = _at(blocks.q_segments_IBQ, i), _at(blocks.k_segments_JBT, j)
    queries_Q = _at(blocks.positions_IQ, i)
    keys_T = j * k_segments_BT.shape[1] + jnp.arange(k_segments_BT.shape[1])
    same = q_segments_BQ[:, :, None] == k_segments_BT[:, None, :]
    real = (q_segments_BQ != 0)[:, :, None]
    return (same & real & (queries_Q[:, None] >= keys_T))[:, None, None]


def _keep(blocks: Blocks, i, j, shape, rate):
    """float32 of `shape` [B, K, G, Q, T]: 0 where dropped, else the scale of kept probabilities."""
    batch, kv_heads, groups, _, keys = shape
    kept = probability_dropout.kept(
        blocks.key,
        rate,
        blocks.part.first_row + jnp.arange(batch),
        blocks.part.first_head + jnp.arange(kv_heads * groups),
        _at(blocks.positions_IQ, i),
        j * keys,
        keys,
    )
    return jnp.where(kept.reshape(shape), probability_dropout.scale(rate), 0.0)
