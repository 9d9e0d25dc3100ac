"""Frozen kernels as int8: their error, and a model of them against the floats they stand for.

Tolerances: a float32 sum of n products is off by at most (n + 2) 2^-24 times the sum of their sizes
(Higham, Accuracy and Stability, section 3.1).
"""

import dataclasses

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import TWO_LAYERS, random_weights

from emu3_jax.models.language import int8, lora
from emu3_jax.models.language.layers import Linear
from emu3_jax.models.language.lora import LoraConfig
from emu3_jax.models.language.transformer import Transformer, TransformerConfig, unstack_layers

ROUNDING = 2.0**-24  # of float32
MODEL = TransformerConfig(100, vocab_multiple=64, dropout=0.0, **TWO_LAYERS)
LORA = LoraConfig(rank=2, alpha=4.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_entry_is_off_by_half_a_step_at_most_and_zeros_are_exact(dtype):
    rng = np.random.default_rng(0)
    kernel = rng.standard_t(3, (3, 40, 4, 5)).astype(np.float32)  # with outliers
    kernel[1, :, 2, 3] = 0
    kernel[0, :, 0, 0] = 1e-30 * rng.normal(size=40)
    kernel = np.asarray(jnp.asarray(kernel, dtype).astype(jnp.float32))
    q, scale = (np.asarray(x) for x in int8.rounded(jnp.asarray(kernel), (1,)))
    assert q.dtype == np.int8 and scale.dtype == np.float32
    assert q.shape == kernel.shape and scale.shape == (3, 1, 4, 5)
    np.testing.assert_allclose(scale, np.abs(kernel).max(1, keepdims=True) / 127, rtol=1e-6)
    away = np.abs(kernel - q.astype(np.float64) * scale)
    # Half a step; the quotient, up to 127, and the scale are rounded once each.
    assert np.all(away <= scale * (0.5 + 127 * 4 * ROUNDING))
    assert away.max() > 0.45 * scale.max()
    assert not q[1, :, 2, 3].any() and scale[1, 0, 2, 3] == 0
    assert np.abs(q).max() == 127


class Layer(nn.Module):
    dtype: str

    @nn.compact
    def __call__(self, x):
        names = ("heads", "head_dim", "embed")
        return Linear((4, 8, 6), names, self.dtype, "float32", num_in=2, name="layers_0")(x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_and_its_gradient_by_hand(dtype):
    rng = np.random.default_rng(1)
    # Sums over 32 inputs; float16 would overflow.
    x = jnp.asarray(100 * rng.normal(size=(3, 4, 8)), dtype)
    out = jnp.asarray(rng.normal(size=(3, 6)), dtype)
    q, scale = int8.rounded(jnp.asarray(rng.normal(size=(4, 8, 6)), jnp.float32), (0, 1))
    params = {"layers_0": {"kernel": q, "kernel_scale": scale}}

    def run(x):
        with int8.reading():
            return Layer(dtype).apply({"params": params}, x)

    y, backward = jax.vjp(run, x)
    (of_x,) = backward(out)
    assert y.dtype == of_x.dtype == dtype
    w = np.asarray(q, np.float64) * np.asarray(scale, np.float64)
    wide, given = (np.asarray(a.astype(jnp.float32), np.float64) for a in (x, out))
    last = {"float32": ROUNDING, "bfloat16": 2.0**-8}[dtype]
    exact, sizes = np.tensordot(wide, w, 2), np.tensordot(np.abs(wide), np.abs(w), 2)
    assert np.all(
        np.abs(y.astype(jnp.float32) - exact) <= 35 * ROUNDING * sizes + last * abs(exact)
    )
    exact = np.einsum("bo,nho->bnh", given, w)
    sizes = np.einsum("bo,nho->bnh", np.abs(given), np.abs(w))
    # The gradient times the scale is rounded to the type of the layer as well.
    bound = (9 * ROUNDING + last) * sizes + last * abs(exact)
    assert np.all(np.abs(of_x.astype(jnp.float32) - exact) <= bound)


def _stored(config, params):
    """The float weights of a model with int8 kernels."""
    model, key = Transformer(config), jax.random.key(0)

    def init():
        return model.init(key, jnp.zeros((1, 1), jnp.int32))

    boxed = jax.eval_shape(init)["params"]
    layers = int8.linear_layers(init)
    like = nn.unbox(jax.eval_shape(lambda tree: int8.zeros(tree, layers), boxed))
    flat, floats = (flax.traverse_util.flatten_dict(tree) for tree in (like, params))
    for path, leaf in floats.items():
        scale = flat.get((*path[:-1], int8.SCALE)) if path[-1] == int8.KERNEL else None
        flat[path] = jnp.asarray(leaf)
        if scale is not None:
            axes = tuple(i for i, size in enumerate(scale.shape) if size == 1)
            flat[path], flat[*path[:-1], int8.SCALE] = int8.rounded(flat[path], axes)
    return flax.traverse_util.unflatten_dict(flat)


@pytest.fixture(scope="module")
def weights():
    model = Transformer(MODEL)
    return random_weights(model, jnp.zeros((1, 4), jnp.int32), 0.3)["params"]


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(2).integers(0, MODEL.vocab_size, (2, 12))


def _by_numpy(params, ids):
    """Logits in float64 of weights whose kernels are q times their scales."""
    c = MODEL
    flat = flax.traverse_util.flatten_dict(params)
    flat = {path: np.asarray(x, np.float64) for path, x in flat.items()}
    for *module, _ in [path for path in flat if path[-1] == int8.SCALE]:
        flat[*module, "kernel"] *= flat.pop((*module, int8.SCALE))
    params = flax.traverse_util.unflatten_dict(flat)

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_eps) * scale

    half = c.head_dim // 2
    wave = c.rope_theta ** (-np.arange(half) / half)
    angle = (np.arange(ids.shape[1])[:, None] * wave)[:, None]

    def rotated(x):
        a, b = x[..., :half], x[..., half:]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = params["embed"]["embedding"][ids]
    for i in range(c.num_layers):
        layer = jax.tree.map(lambda a, i=i: a[i], params["layers"])
        h, parts = norm(x, layer["attention_norm"]["scale"]), layer["attention"]
        q, k, v = (np.tensordot(h, parts[name]["kernel"], 1) for name in ("query", "key", "value"))
        q, k = rotated(q), rotated(k)
        k, v = (np.repeat(a, c.num_heads // c.num_kv_heads, axis=2) for a in (k, v))
        scores = np.einsum("bsnh,btnh->bnst", q, k) / np.sqrt(c.head_dim)
        scores += np.triu(np.full(scores.shape[-2:], -np.inf), 1)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        probs = scores / scores.sum(-1, keepdims=True)
        h = np.einsum("bnst,btnh->bsnh", probs, v)
        x = x + np.tensordot(h, parts["output"]["kernel"], 2)
        h = norm(x, layer["mlp_norm"]["scale"])
        gate, up = (h @ layer[name]["kernel"] for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ layer["down"]["kernel"]
    logits = norm(x, params["final_norm"]["scale"]) @ params["lm_head"]["kernel"]
    return logits[..., : c.vocab_size]


def test_a_model_is_that_of_the_weights_that_its_int8_stands_for(weights, ids):
    stored = _stored(MODEL, weights)
    kinds = {path[-2]: x.dtype for path, x in flax.traverse_util.flatten_dict(stored).items()
             if path[-1] == "kernel"}  # fmt: skip
    assert kinds.pop("lm_head") == np.float32
    assert set(kinds.values()) == {np.dtype("int8")} and len(kinds) == 7
    with int8.reading():
        found = Transformer(MODEL).apply({"params": stored}, ids)
    expected = _by_numpy(stored, ids)
    # Every layer sums up to 48 products; errors of the 2 layers add up and pass through norms,
    # which divide by a size of about 1: 2 x 7 sums of 50 roundings each of the largest.
    assert np.abs(found - expected).max() <= 700 * ROUNDING * np.abs(expected).max()
    # The quantisation itself is seen, and is small.
    away = np.abs(expected - _by_numpy(weights, ids)).max() / np.abs(expected).max()
    assert 1e-3 < away < 0.2


@pytest.mark.parametrize("remat", ["none", "full", "dots", "attention"])
def test_gradients_of_adapters_are_those_beside_the_dequantised_floats(weights, ids, remat):
    config = dataclasses.replace(MODEL, remat=remat)
    model, stored = Transformer(config), _stored(config, weights)
    with lora.adapting(LORA):
        example = jax.eval_shape(model.init, jax.random.key(0), ids)["params"]
    adapters, _ = lora.split(nn.unbox(example))
    rng = np.random.default_rng(3)
    adapters = jax.tree.map(
        lambda a: jnp.asarray(0.1 * rng.normal(size=a.shape), jnp.float32), adapters
    )

    def loss(adapters, base):
        with lora.adapting(LORA), int8.reading():
            logits = model.apply({"params": lora.joined(LORA, base, adapters)}, ids[:, :-1])
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, 1:, None], -1)
        return -picked.mean()

    run = jax.jit(jax.value_and_grad(loss))
    value, gradient = run(adapters, stored)
    other, expected = run(adapters, int8.dequantized(stored, "float32"))
    assert float(value) == pytest.approx(float(other), rel=1e-5)
    flat = flax.traverse_util.flatten_dict(gradient)
    assert len(flat) == 14 and all(np.any(x) for x in flat.values())
    for path, x in flax.traverse_util.flatten_dict(expected).items():
        assert np.abs(flat[path] - x).max() <= 1e-4 * np.abs(x).max(), path
    # The stack of a kind of kernels exists as int8 alone: one layer at a time is made floats.
    text = run.lower(adapters, stored).compile().as_text()
    size = f"{MODEL.hidden_size},{MODEL.intermediate_size}]"
    assert f"s8[2,{size}" in text and f"f32[2,{size}" not in text


def test_layers_without_a_scan(weights, ids):
    config = dataclasses.replace(MODEL, scan_layers=False)
    stored = _stored(config, unstack_layers(weights))
    with int8.reading():
        found = Transformer(config).apply({"params": stored}, ids)
        expected = Transformer(MODEL).apply({"params": _stored(MODEL, weights)}, ids)
    np.testing.assert_allclose(found, expected, atol=700 * ROUNDING * np.abs(expected).max())
