"""The cache: what is written is what is read, in any row, at any position, on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu3_jax import sharding
from emu3_jax.models.language.kv_cache import KVCache
from emu3_jax.models.language.transformer_config import TransformerConfig

ROWS, SLOTS = 8, 20
# Scanned layers are one array, others a list.
CONFIGS = [
    TransformerConfig(16, 8, 8, 3, 4, 2, 6, scan_layers=scanned) for scanned in (True, False)
]


def tokens_of(cache, config, count, rows=ROWS, seed=0):
    """Keys and values of `count` new tokens, of all layers, as the cache stores them."""
    rng = np.random.default_rng(seed)

    def layer(i):
        shape = (rows, count, config.num_kv_heads, config.head_dim)
        of_layer = KVCache(*(None if x is None else jax.tree.leaves(x)[0] for x in cache))
        return of_layer.stored(*rng.normal(size=(2, *shape)).astype(np.float32))

    layers = [layer(i) for i in range(config.num_layers)]
    if config.scan_layers:
        return jax.tree.map(lambda *x: jnp.stack(x), *layers)
    return jax.tree.map(lambda *x: x, *layers)


def stacked(cache):
    """All fields as numpy arrays [L, R, K, C, …]."""
    if isinstance(cache.k, tuple):
        cache = KVCache(*(None if x is None else np.stack(x) for x in cache))
    return [np.array(x) for x in cache if x is not None]


def expected_write(cache, new, positions):
    arrays = [x.copy() for x in stacked(cache)]
    for x, of_new in zip(arrays, stacked(new), strict=True):
        for r, row in enumerate(positions):
            for s, position in enumerate(row):
                if position >= 0:
                    x[:, r, :, position] = of_new[:, r, :, s]
    return arrays


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=["scanned", "listed"])
def test_tokens_are_written_at_their_positions(config, quantized):
    cache = KVCache.zeros(config, ROWS, SLOTS, quantized)
    new = tokens_of(cache, config, 4)
    starts = np.array([0, 3, 12, 7, 1, 0, 12, 5])
    positions = starts[:, None] + np.arange(4)
    positions[5] = -1  # a row of padding
    positions[3, 2:] = -1  # padding behind tokens
    found = stacked(jax.jit(KVCache.write_run)(cache, new, positions))
    right = expected_write(cache, new, positions)
    for x, y in zip(found, right, strict=True):
        x[:, 5, :, SLOTS - 4 :] = 0  # where a row of padding goes
        x[:, 3, :, 9:11] = 0
        np.testing.assert_array_equal(x, y)

    apart = np.array([[0, 9, 4, -1], [2, 1, 0, 3], *[[5, -1, 7, 11]] * 6])
    found = stacked(jax.jit(KVCache.write_each)(cache, new, apart))
    for x, y in zip(found, expected_write(cache, new, apart), strict=True):
        x[:, :, :, SLOTS - 1] = 0
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=["scanned", "listed"])
@pytest.mark.parametrize("shards", [1, 4])
def test_rows_are_taken_from_and_put_to_their_group(config, quantized, shards):
    cache = KVCache.zeros(config, ROWS, SLOTS, quantized)
    cache = cache.write_run(tokens_of(cache, config, 9), np.zeros((ROWS, 9), int) + np.arange(9))
    index = np.array([[1, 0]] * 4) if shards == 4 else np.array([[5, 2, 7]])
    rows = (index + ROWS // shards * np.arange(shards)[:, None]).ravel()

    def copy(cache):
        taken = cache.take(index, 5)
        return taken, cache.put(taken, index[:, ::-1], np.full_like(index, 10))

    if shards == 1:
        taken, put = jax.jit(copy)(cache)
    else:
        with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(2, 2, 1, 2))):
            taken, put = jax.jit(copy)(cache)
    for x, before, after in zip(*map(stacked, (taken, cache, put)), strict=True):
        np.testing.assert_array_equal(x, before[:, rows, :, :5])
        right = before.copy()
        to = (index[:, ::-1] + ROWS // shards * np.arange(shards)[:, None]).ravel()
        right[:, to, :, 10:15] = before[:, rows, :, :5]
        np.testing.assert_array_equal(after, right)


def test_int8_is_within_half_a_step():
    rng = np.random.default_rng(0)
    k, v = rng.normal(size=(2, 3, 4, 2, 6)) * 10.0 ** rng.integers(-9, 9, (4, 1, 1))
    k, v = np.array(k, np.float32), np.array(v, np.float32)
    k[0, 0] = 0
    stored = KVCache(*(jnp.zeros(1, jnp.int8),) * 2, *(jnp.zeros(1),) * 2).stored(k, v)
    for x, q, scale in ((k, stored.k, stored.k_scale), (v, stored.v, stored.v_scale)):
        x = np.swapaxes(x, 1, 2)
        step = np.asarray(scale)[..., None]
        assert q.dtype == jnp.int8 and (np.abs(q) <= 127).all()
        assert (np.abs(np.asarray(q) * step - x) <= 0.5001 * step).all()
        np.testing.assert_allclose(step[..., 0], np.abs(x).max(-1) / 127, rtol=1e-6)
