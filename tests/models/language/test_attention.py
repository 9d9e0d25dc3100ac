"""Who sees whom, the implementations against float64 numpy, padding that stays finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu3_jax.models import cpu
from emu3_jax.models.language import attention
from emu3_jax.models.language.attention_kernels import choice
from emu3_jax.models.language.attention_kernels.blockwise import blockwise
from emu3_jax.models.language.attention_kernels.cached import cached
from emu3_jax.models.language.attention_kernels.reference import reference
from emu3_jax.models.language.attention_kernels.splash import splash
from emu3_jax.models.language.attention_kernels.triangle import triangle
from emu3_jax.models.language.kv_cache import KVCache

# What runs here: blocks that fill the row, that do not, and the TPU kernels' meaning.
HERE = {
    "reference": reference,
    "blockwise, one block": blockwise,
    "blockwise, blocks of 4": functools.partial(blockwise, block=4),
    "blockwise, blocks of 5": functools.partial(blockwise, block=5),
    "triangle, one block": triangle,
    "triangle, blocks of 4": functools.partial(triangle, block=4),
    "triangle, blocks of 5": functools.partial(triangle, block=5),
    "splash": functools.partial(splash, interpret=True),
}

B, S, N, K, H = 2, 12, 4, 2, 8
SEGMENTS = np.array([[1] * 5 + [2] * 4 + [0] * 3, [0, 0, 7, 7, 7, 7, 7, 7, 9, 9, 9, 9]], np.int32)


def _inputs():
    rng = np.random.default_rng(0)
    shapes = ((B, S, N, H), (B, S, K, H), (B, S, K, H))
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def _plain(q, k, v, segments):
    """One query at a time in float64: the meaning of the thing."""
    out = np.zeros(q.shape)
    for b, s, n in np.ndindex(B, S, N):
        if segments[b, s] == 0:
            continue
        seen = [t for t in range(s + 1) if segments[b, t] == segments[b, s]]
        keys, values = (a[b, seen, n // (N // K)].astype(np.float64) for a in (k, v))
        probs = np.exp(keys @ q[b, s, n].astype(np.float64) / np.sqrt(H))
        out[b, s, n] = probs / probs.sum() @ values
    return out


@pytest.mark.parametrize("name", HERE)
def test_implementations_equal_the_plain_one(name):
    q, k, v = _inputs()
    found = jax.jit(HERE[name])(q, k, v, jnp.asarray(SEGMENTS))
    np.testing.assert_allclose(found, _plain(q, k, v, SEGMENTS), atol=2e-6)


@pytest.mark.parametrize("name", HERE)
def test_bfloat16_sums_in_float32(name):
    q, k, v = (jnp.asarray(a, jnp.bfloat16) for a in _inputs())
    found = jax.jit(HERE[name])(q, k, v, jnp.asarray(SEGMENTS))
    assert found.dtype == jnp.bfloat16
    expected = _plain(*(np.asarray(a, np.float32) for a in (q, k, v)), SEGMENTS)
    # Half a unit in the last of 8 bits each: the scaled query (times scores, which stay below 5),
    # the probabilities and the output.
    np.testing.assert_allclose(
        np.asarray(found, np.float32), expected, rtol=0, atol=7 * 2**-9 * np.abs(v).max()
    )


@functools.cache
def _value_and_gradients(name, dropout=0.0):
    weights = np.random.default_rng(1).normal(size=(B, S, N, H)).astype(np.float32)

    def total(q, k, v):
        out = HERE[name](q, k, v, jnp.asarray(SEGMENTS), dropout, jax.random.key(3))
        return jnp.sum(out * weights), out

    grads, out = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*_inputs())
    return [np.asarray(a) for a in (out, *grads)]


@pytest.mark.parametrize("name", HERE)
def test_padding_gives_zeros_and_finite_gradients(name):
    out, *grads = _value_and_gradients(name)
    np.testing.assert_array_equal(out[SEGMENTS == 0], 0.0)
    for grad in grads:
        assert np.isfinite(grad).all()
        np.testing.assert_array_equal(grad[SEGMENTS == 0], 0.0)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", HERE)
def test_implementations_have_the_same_gradients(name, dropout):
    """With dropout: of the same key each drops the same probabilities."""
    if dropout and name == "splash":
        pytest.skip("no dropout on probabilities")
    found = _value_and_gradients(name, dropout)
    for a, b in zip(found, _value_and_gradients("reference", dropout), strict=True):
        # Sums of up to 12 terms (keys, queries) of 8 products (head_dim) each, rounded in another
        # order: sqrt(12 x 8) = 10 roundings of the largest entry.
        np.testing.assert_allclose(a, b, rtol=0, atol=10 * 2**-23 * np.abs(b).max())


@pytest.mark.parametrize("name", ["reference", "blockwise, blocks of 4", "triangle, blocks of 5"])
def test_dropout_on_probabilities_keeps_the_mean(name):
    q, k, v = _inputs()
    segments = jnp.asarray(SEGMENTS)
    keys = jax.random.split(jax.random.key(0), 500)
    one = functools.partial(HERE[name], q, k, v, segments, 0.5)
    drop = jax.jit(functools.partial(jax.lax.map, one))
    samples = np.asarray(drop(keys))
    assert not np.allclose(samples[0], samples[1])
    # The first token of a document sees itself alone: its output is 0 or twice the value.
    first = samples[:, 0, 0, 0] / v[0, 0, 0]
    assert set(np.unique(first.round(4))) == {0.0, 2.0}
    # Five standard errors of the mean of 500 draws, for each of 768 positions by its own spread.
    error = np.abs(samples.mean(0) - reference(q, k, v, segments))
    assert (error <= 5 * samples.std(0) / np.sqrt(500) + 1e-6).all()


@pytest.mark.parametrize("name", choice.WITHOUT_DROPOUT)
def test_kernels_without_dropout_refuse_it(name):
    q, k, v = _inputs()
    with pytest.raises(ValueError, match=f"attention='{name}' has no dropout on probabilities"):
        attention.IMPLEMENTATIONS[name](q, k, v, jnp.asarray(SEGMENTS), 0.1, jax.random.key(0))


def test_cached_attention_equals_whole_rows():
    q, k, v = _inputs()
    segments = np.array([[1] * S, [0] * 3 + [1] * (S - 3)], np.int32)
    expected = reference(q, k, v, jnp.asarray(segments))
    old, slots = 7, 10
    real = segments == 1
    cache = [np.full((B, K, slots + 2, H), np.float32(99.0)) for _ in range(2)]
    for slot, new in zip(cache, (k, v), strict=True):
        slot[:, :, :old] = np.swapaxes(new, 1, 2)[:, :, :old]
    valid = np.zeros((B, slots), bool)
    valid[:, :old] = real[:, :old]
    new = S - old
    causal = np.tril(np.ones((new, new), bool))
    old_mask = jnp.asarray(real[:, old:, None] & valid[:, None])
    new_mask = jnp.asarray(real[:, old:, None] & real[:, None, old:] & causal)
    cache = KVCache(*map(jnp.asarray, cache))
    found = cached(q[:, old:], cache, cache.stored(k[:, old:], v[:, old:]), old_mask, new_mask)
    np.testing.assert_allclose(found, expected[:, old:], atol=2e-6)


@pytest.mark.parametrize("quantized", [False, True])
def test_one_query_as_sums_equals_matmuls(quantized, monkeypatch):
    q, k, v = _inputs()
    dtype = jnp.int8 if quantized else jnp.float32
    scales = [jnp.zeros((1, 1, 1))] * 2 * quantized
    stored = KVCache(*(jnp.zeros((1, 1, 1, 1), dtype),) * 2, *scales).stored(k, v)
    masks = jnp.ones((B, 1, S), bool), jnp.ones((B, 1, 1), bool)
    new = jax.tree.map(lambda x: x[:, :, :1], stored)
    found = []
    for pays in (True, False):
        monkeypatch.setattr(cpu, "single_query_as_sums", lambda queries, pays=pays: pays)
        found.append(cached(q[:, :1], stored, new, *masks))
    np.testing.assert_allclose(*found, atol=2e-6)
