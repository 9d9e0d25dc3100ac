"""Attention on CPUs: blocks of queries, each with all keys up to its last one.

The blocks are static, so nothing is computed above the diagonal but half of each block on it. A
block has all of its scores at once and needs no running maximum. The backward pass computes them
again from the log of their sum (FlashAttention-2, arXiv 2307.08691). A loop over key heads keeps
the scores of one block in a core's cache: on two cores, rows of 1,024 took 68 ms forward and back,
105 ms with all heads at once, 260 ms as one score matrix.

XLA's CPU backend multiplies fastest if the left matrix has the summed dimension last, and copies it
otherwise. So the large matrix, the probabilities or their gradient, is always on the right where
the sum is over queries.

Factors are applied to queries and outputs, not to the larger scores: XLA makes a whole array of
each constant that a loop multiplies by.

Which probabilities are dropped is drawn once for all blocks and kept for the backward pass, a byte
each: on a CPU a draw is a loop of many small steps, whatever its size.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from emu3_jax.models.language import layers
from emu3_jax.models.language.attention_kernels import probability_dropout
from emu3_jax.models.language.attention_kernels.mesh import Part, over_mesh
from emu3_jax.models.language.attention_kernels.reference import MASKED, zero_blind_rows

BLOCK = 128
"""Queries per block. 64 to 256 were equally fast for rows of 352 and of 1,024."""

MOST_BLOCKS = 32
"""Longer rows have larger blocks: the compiled program grows with their number."""


def triangle(q_BSNH, k_BSKH, v_BSKH, segment_ids_BS, dropout=0.0, dropout_key=None, *, block=None):
    """Attention in blocks of `block` queries; arguments as in IMPLEMENTATIONS.

    Rows must not be sharded over `context`: a device would not know its blocks at compile time.
    """
    length = q_BSNH.shape[1]
    block = block or max(BLOCK, -(-length // MOST_BLOCKS))
    key = dropout_key if dropout > 0.0 else None
    attend = functools.partial(_attend, rate=dropout, block=block)
    out = over_mesh(attend, q_BSNH, k_BSKH, v_BSKH, segment_ids_BS, key)
    # Padding attends to padding, since a query that attends to nothing has no softmax.
    return zero_blind_rows(out, segment_ids_BS != 0)


def _attend(q_BSNH, k_BSKH, v_BSKH, q_segments, k_segments, part: Part, key, *, rate, block):
    """Attention of one device's rows and heads; arguments as in `over_mesh`."""
    batch, length, heads, dim = q_BSNH.shape
    kv_heads = k_BSKH.shape[2]
    groups = heads // kv_heads
    q = q_BSNH.reshape(batch, length, kv_heads, groups, dim)
    q = jnp.transpose(q, (0, 2, 3, 1, 4)).reshape(-1, groups, length, dim)
    k, v = (jnp.swapaxes(a, 1, 2).reshape(-1, length, dim) for a in (k_BSKH, v_BSKH))
    kept = None
    if rate > 0.0:
        rows, numbers = part.first_row + jnp.arange(batch), part.first_head + jnp.arange(heads)
        positions = jnp.arange(length)
        kept = probability_dropout.kept(key, rate, rows, numbers, positions, 0, length)
        kept = kept.reshape(-1, groups, length, length)
    # XLA does not vectorise the comparison of an array with itself: exp then took five times as
    # long. So the segments of keys are others, by one.
    segments = [jnp.repeat(a, kv_heads, axis=0) for a in (q_segments, k_segments + 1)]
    out = _attention(q, k, v, segments, kept, rate, block)
    out = out.reshape(batch, kv_heads, groups, length, dim)
    return jnp.transpose(out, (0, 3, 1, 2, 4)).reshape(q_BSNH.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attention(q, k, v, segments, kept, rate: float, block: int):
    """q [M, G, S, H], k and v [M, S, H] -> like q; M key heads of all rows.

    `segments`: int32 [M, S] of queries, and of keys + 1. `kept`: bool [M, G, S, S], or None.
    """
    return _forward(q, k, v, segments, kept, rate, block)[0]


def _forward(q, k, v, segments, kept, rate, block):
    one = functools.partial(_forward_one, rate=rate, block=block)
    out, log_sum = jax.lax.map(lambda arrays: one(*arrays), (q, k, v, segments, kept))
    out = checkpoint_name(out, "attention")
    log_sum = checkpoint_name(log_sum, "attention")
    return out, (q, k, v, segments, kept, out, log_sum)


def _forward_one(q, k, v, segments, kept, *, rate, block):
    """One key head: output [G, S, H] and the log of the sum of each query [G, S]."""
    outs, log_sums = [], []
    for start, stop in _blocks(q, block):
        q_block = _flat(q, start, stop, q.shape[-1] ** -0.5)
        scores = _scores(q_block, k[:stop], segments, start, stop)
        top = jnp.max(scores, axis=-1)
        probs = jnp.exp(scores - top[..., None])
        norm = jnp.sum(probs, axis=-1)
        if rate > 0.0:
            probs = jnp.where(kept[:, start:stop, :stop], probs, 0.0)
        total = _product("qt,th->qh", _flat(probs).astype(v.dtype), v[:stop])
        total = total.reshape(*norm.shape, -1) * _scale(rate)
        outs.append((total / norm[..., None]).astype(q.dtype))
        log_sums.append(top + jnp.log(norm))
    return jnp.concatenate(outs, axis=1), jnp.concatenate(log_sums, axis=1)


def _backward(rate, block, residuals, d_out):
    one = functools.partial(_backward_one, rate=rate, block=block)
    dq, dk, dv = jax.lax.map(lambda arrays: one(*arrays), (*residuals, d_out))
    return dq, dk, dv, None, None


def _backward_one(q, k, v, segments, kept, out, log_sum, d_out, *, rate, block):
    """One key head: gradients like q, k and v."""
    # Softmax gradient: sum over keys of probability x its cotangent, for each query.
    pull = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    scale = q.shape[-1] ** -0.5
    dqs, dk, dv = [], jnp.zeros(k.T.shape, jnp.float32), jnp.zeros(v.T.shape, jnp.float32)
    for start, stop in _blocks(q, block):
        q_block, d_out_block = _flat(q, start, stop, scale), _flat(d_out, start, stop, _scale(rate))
        scores = _scores(q_block, k[:stop], segments, start, stop)
        probs = jnp.exp(scores - log_sum[:, start:stop, None])
        d_probs = _product("qh,th->qt", d_out_block, v[:stop]).reshape(probs.shape)
        weights = probs
        if rate > 0.0:
            keep = kept[:, start:stop, :stop]
            weights, d_probs = (jnp.where(keep, a, 0.0) for a in (probs, d_probs))
        d_scores = probs * (d_probs - pull[:, start:stop, None])
        d_scores, weights = (_flat(a).astype(q.dtype) for a in (d_scores, weights))
        dq = _product("qt,th->qh", d_scores, k[:stop]) * scale
        dqs.append(dq.reshape(len(q), -1, q.shape[-1]))
        dk = dk.at[:, :stop].add(_product("qh,qt->ht", q_block, d_scores))
        dv = dv.at[:, :stop].add(_product("qh,qt->ht", d_out_block, weights))
    dq = jnp.concatenate(dqs, axis=1)
    return dq.astype(q.dtype), dk.T.astype(k.dtype), dv.T.astype(v.dtype)


_attention.defvjp(_forward, _backward)


def _blocks(q, block: int) -> list[tuple[int, int]]:
    """First position of each block of queries, and the position after its last."""
    length = q.shape[1]
    return [(start, min(start + block, length)) for start in range(0, length, block)]


def _flat(a_GSX, start: int = 0, stop: int | None = None, factor: float = 1.0):
    """[G, S, X] -> [G x Q, X], the positions `start` to `stop` times a factor, for all heads."""
    a = a_GSX[:, start:stop].reshape(-1, a_GSX.shape[-1])
    return a if factor == 1.0 else (a.astype(jnp.float32) * factor).astype(a.dtype)


def _scores(q, k, segments, start: int, stop: int):
    """float32 scores [G, Q, T] of the scaled queries `start` to `stop`; MASKED where unseen."""
    scores = _product("qh,th->qt", q, k).reshape(-1, stop - start, stop)
    q_segments, k_segments = segments
    positions = jnp.arange(stop)
    causal = positions[start:, None] >= positions
    same = q_segments[start:stop, None] == k_segments[:stop] - 1
    return jnp.where(causal & same, scores, MASKED)


def _product(formula, a, b):
    """Einsum in the type of its inputs, summed in float32."""
    exact = layers.precision(a.dtype)
    return jnp.einsum(formula, a, b, precision=exact, preferred_element_type=jnp.float32)


def _scale(rate: float) -> float:
    """The factor of kept probabilities."""
    return probability_dropout.scale(rate) if rate > 0.0 else 1.0
