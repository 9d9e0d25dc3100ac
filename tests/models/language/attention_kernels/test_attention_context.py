"""A whole transformer whose rows several devices share, in zigzag order inside."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu3_jax import sharding
from emu3_jax.models.language import zigzag
from emu3_jax.models.language.transformer import Transformer, TransformerConfig
from emu3_jax.sharding import MeshConfig

B, S = 2, 32
MODEL = Transformer(
    TransformerConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=24,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        vocab_multiple=4,
        attention="blockwise",
        remat="attention",
        dropout=0.2,
    )
)
MESHES = {
    "fsdp=2 context=2 tensor=2": MeshConfig(fsdp=2, context=2, tensor=2),
    "data=2 context=4": MeshConfig(data=2, fsdp=1, context=4),
}
SEGMENTS = np.repeat([[1, 2, 3, 0], [1, 2, 2, 2]], 8, axis=1).astype(np.int32)


def _init(key):
    return MODEL.init(key, jnp.zeros((1, 1), jnp.int32))


def _hidden_and_gradients(variables):
    """Hidden states in row order with dropout, and gradients of a weighted sum of them."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 60, (B, S)).astype(np.int32)
    weights = rng.normal(size=(B, S, 16)).astype(np.float32)

    def total(variables):
        rngs = {"dropout": jax.random.key(5)}
        arguments = (tokens, None, jnp.asarray(SEGMENTS), False)
        hidden_BSD = MODEL.apply(variables, *arguments, method="hidden", rngs=rngs)
        return jnp.sum(hidden_BSD * weights), hidden_BSD

    return jax.jit(jax.grad(total, has_aux=True))(variables)


@functools.cache
def _on_one_device():
    return _hidden_and_gradients(nn.unbox(jax.jit(_init)(jax.random.key(0))))


@pytest.mark.parametrize("mesh", MESHES)
def test_a_shared_row_gives_hidden_states_and_gradients_of_one_device(mesh):
    right, expected = _on_one_device()
    active = sharding.make_mesh(MESHES[mesh])
    with jax.set_mesh(active):
        shardings = sharding.state_shardings(jax.eval_shape(_init, jax.random.key(0)), active)
        variables = jax.device_put(nn.unbox(jax.jit(_init)(jax.random.key(0))), shardings)
        grads, found = _hidden_and_gradients(variables)
    # As for other meshes (test_transformer_mesh.py): sqrt(B x S) = 8 roundings, doubled by the
    # layers behind; here two layers of attention in blocks on top.
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(found, expected, rtol=0, atol=32 * eps * np.abs(expected).max())
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=32 * eps * np.abs(b).max())


def test_the_order_changes_once_a_step_and_not_in_each_layer(monkeypatch):
    calls = []

    def exchange(x, way):
        calls.append((way.__name__, x.ndim))
        return x

    monkeypatch.setattr(zigzag, "_exchange", exchange)
    with jax.set_mesh(sharding.make_mesh(MESHES["data=2 context=4"])):
        variables = jax.eval_shape(_init, jax.random.key(0))
        tokens = jax.ShapeDtypeStruct((B, S), jnp.int32)
        jax.eval_shape(functools.partial(MODEL.apply, method="hidden"), variables, tokens)
    assert calls == [("_to_zigzag", 2)] * 3 + [("_to_rows", 3)]


def test_a_length_that_cannot_be_shared_is_named():
    with jax.set_mesh(sharding.make_mesh(MESHES["data=2 context=4"])):
        variables = jax.eval_shape(_init, jax.random.key(0))
        tokens = jax.ShapeDtypeStruct((B, 12), jnp.int32)
        with pytest.raises(ValueError, match="length=12 .* context=4, so it must be a multiple"):
            jax.eval_shape(MODEL.apply, variables, tokens)
