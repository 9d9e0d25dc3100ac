"""A fused attention kernel in bfloat16 against the reference in float32, values and gradients.

The tolerance is derived, element by element. u = 2^-8 is the unit roundoff of bfloat16; sums are
float32 and products of bfloat16 numbers are exact in it. With probabilities P = softmax(s),
O = P V, and a cotangent C of O, a kernel may round once each:

  P in P V and in P^T C, and every result:   dO <= u (P |V| + |O|),  dV <= u (P^T |C| + |V'|)
  Q = C V^T:                                 dQ <= u |Q|
  D = sum of C O over the head, or of P Q over the keys: dD <= the larger of |C| dO and u P |Q|
  S = P (Q - D), rounded:                    dS <= u |S| + P (dQ + dD)
  the gradients of queries and keys:         dS |k| + u |q'|  and  dS^T |q| + u |k'|

V', q', k' are the gradients. A kernel is right if no error exceeds its tolerance; SLACK covers the
products of two roundings, and the sums.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.gpu import card as cards
from emu3_jax.models.language.attention_kernels.choice import IMPLEMENTATIONS
from emu3_jax.models.language.attention_kernels.reference import document_mask

UNIT = 2.0**-8
SLACK = 1.05
NAMES = ("values", "queries", "keys", "values of keys")
PADDING = 16  # of a row's tokens one is padding


class Sizes(NamedTuple):
    """Of the inputs: rows, tokens, heads, key heads, numbers per head."""

    rows: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int


def measure(sizes: Sizes, device: jax.Device, kernel: str = "cudnn", repeats: int = 5) -> dict:
    """The largest error of each result as a part of its tolerance, and both kernels' times.

    Three documents and padding in each row; times are those of values and gradients in bfloat16.
    """
    with jax.default_device(device):
        inputs, segment_ids = _inputs(sizes)
        run = functools.partial(_run, segment_ids_BS=segment_ids)
        found = jax.jit(functools.partial(run, IMPLEMENTATIONS[kernel]))(*inputs)
        shares = jax.jit(_shares)(found, inputs, segment_ids)
        times = {}
        for name in (kernel, "reference"):
            call = jax.jit(functools.partial(run, IMPLEMENTATIONS[name]))
            times[name] = 1e3 * cards.median_seconds(lambda call=call: call(*inputs), repeats)
    shares = dict(zip(NAMES, map(float, shares), strict=True))
    return {
        "kernel": kernel,
        "sizes": list(sizes),
        "shares": shares,
        "right": all(share <= SLACK for share in shares.values()),  # also false for NaN
        "ms": times,
    }


def _inputs(sizes: Sizes):
    """(queries, keys, values, cotangent) in bfloat16, and the documents."""
    rows, length, heads, kv_heads, dim = sizes
    keys = jax.random.split(jax.random.key(0), 4)
    counts = (heads, kv_heads, kv_heads, heads)
    inputs = [
        jax.random.normal(key, (rows, length, count, dim), jnp.bfloat16)
        for key, count in zip(keys, counts, strict=True)
    ]
    at_S = jnp.arange(length)
    filled = length - length // PADDING
    segments_S = jnp.where(at_S < filled, 1 + at_S * 3 // filled, 0)
    return inputs, jnp.broadcast_to(segments_S, (rows, length)).astype(jnp.int32)


def _run(kernel, q, k, v, cotangent, segment_ids_BS):
    """(values, gradients of queries, keys and values)."""
    out, backward = jax.vjp(lambda *x: kernel(*x, segment_ids_BS), q, k, v)
    return (out, *backward(cotangent))


def _shares(found, inputs, segment_ids_BS):
    """The largest error of each result divided by its tolerance; row by row, for the memory."""

    def one_row(row):
        found, inputs, segment_ids_S = row
        right, tolerances = _right(*(x.astype(jnp.float32) for x in inputs), segment_ids_S)
        return [
            (jnp.abs(x.astype(jnp.float32) - y) / jnp.maximum(tolerance, 1e-30)).max()
            for x, y, tolerance in zip(found, right, tolerances, strict=True)
        ]

    return [x.max() for x in jax.lax.map(one_row, (found, inputs, segment_ids_BS))]


def _right(q_SNH, k_SKH, v_SKH, c_SNH, segment_ids_S):
    """The results of one row in float32, and how far a kernel may be from them."""
    (length, heads, dim), kv_heads = q_SNH.shape, k_SKH.shape[1]
    q, c = (x.reshape(length, kv_heads, heads // kv_heads, dim) for x in (q_SNH, c_SNH))
    k, v = k_SKH, v_SKH
    times = functools.partial(jnp.einsum, precision="highest")
    scale = dim**-0.5
    mask = document_mask(segment_ids_S[None])[0]
    # Letters: s a query, t a key, k a key head, g a query head of it, h a number of the head.
    p = jax.nn.softmax(jnp.where(mask, scale * times("skgh,tkh->kgst", q, k), -1e30), axis=-1)
    p = jnp.where(mask, p, 0)  # padding attends to nothing
    out = times("kgst,tkh->skgh", p, v)
    dv = times("kgst,skgh->tkh", p, c)
    products = times("skgh,tkh->kgst", c, v)
    s = p * (products - times("skgh,skgh->kgs", c, out)[..., None])
    dq = scale * times("kgst,tkh->skgh", s, k)
    dk = scale * times("kgst,skgh->tkh", s, q)

    of_out = UNIT * (times("kgst,tkh->skgh", p, abs(v)) + abs(out))
    of_dv = UNIT * (times("kgst,skgh->tkh", p, abs(c)) + abs(dv))
    by_out = times("skgh,skgh->kgs", abs(c), of_out)
    of_sum = jnp.maximum(by_out, UNIT * (p * abs(products)).sum(-1))[..., None]
    of_s = UNIT * abs(s) + p * (UNIT * abs(products) + of_sum)
    of_dq = scale * times("kgst,tkh->skgh", of_s, abs(k)) + UNIT * abs(dq)
    of_dk = scale * times("kgst,skgh->tkh", of_s, abs(q)) + UNIT * abs(dk)
    whole = (length, heads, dim)
    results = out.reshape(whole), dq.reshape(whole), dk, dv
    return results, (of_out.reshape(whole), of_dq.reshape(whole), of_dk, of_dv)
