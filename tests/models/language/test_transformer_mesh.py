"""Any mesh gives the loss and the gradients of one device."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu3_jax import sharding
from emu3_jax.models.language.cross_entropy import chunked_cross_entropy
from emu3_jax.models.language.kv_cache import KVCache
from emu3_jax.models.language.transformer import Transformer, TransformerConfig
from emu3_jax.sharding import MeshConfig

B, S = 8, 32
CONFIG = TransformerConfig(
    vocab_size=250,
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_multiple=64,
    remat="dots",
)
MESHES = {
    "data=8": MeshConfig(data=8, fsdp=1),
    "fsdp=8": MeshConfig(fsdp=8),
    "fsdp=4 tensor=2": MeshConfig(fsdp=4, tensor=2),
    "data=4 context=2": MeshConfig(data=4, fsdp=1, context=2),
    "data=2 fsdp=2 tensor=2": MeshConfig(data=2, fsdp=2, tensor=2),
}


def _batch():
    rng = np.random.default_rng(0)
    lengths = ([10, 12, 6, 4], [3, 1, 20, 8], [32, 0, 0, 0], [0, 16, 16, 0])
    segments = np.stack([np.repeat([1, 2, 3, 0], row) for row in lengths * 2])
    return {
        "tokens": rng.integers(0, CONFIG.vocab_size, (B, S)).astype(np.int32),
        "targets": rng.integers(0, CONFIG.vocab_size, (B, S)).astype(np.int32),
        "segments": segments.astype(np.int32),
        "weights": ((segments > 0) * rng.choice([0.5, 1.0], (B, S))).astype(np.float32),
    }


@jax.jit
def _init(key):
    return Transformer(CONFIG).init(key, jnp.zeros((1, S), jnp.int32))["params"]


def _loss(params, batch, deterministic):
    hidden_BSD = Transformer(CONFIG).apply(
        {"params": params},
        batch["tokens"],
        None,
        batch["segments"],
        deterministic,
        method="hidden",
        rngs={"dropout": jax.random.key(5)},
    )
    kernel_DV = params["lm_head"]["kernel"]
    ce = chunked_cross_entropy(
        hidden_BSD,
        kernel_DV,
        batch["targets"],
        batch["weights"],
        vocab_size=CONFIG.vocab_size,
        chunk_tokens=10,
    )
    return ce.total / ce.weight


def _on_mesh(mesh_config, function):
    """function(params, batch) jitted with both laid out over the mesh."""
    mesh = sharding.make_mesh(mesh_config)
    with jax.set_mesh(mesh):
        shardings = sharding.state_shardings(jax.eval_shape(_init, jax.random.key(0)), mesh)
        params = jax.device_put(nn.unbox(_init(jax.random.key(0))), shardings)
        return jax.jit(function)(params, jax.device_put(_batch(), sharding.batch_sharding(mesh)))


@pytest.fixture(scope="module")
def one_device():
    step = jax.jit(jax.value_and_grad(lambda p, b: _loss(p, b, True)))
    return step(nn.unbox(_init(jax.random.key(0))), _batch())


@pytest.mark.parametrize("name", MESHES)
def test_loss_and_gradients_are_those_of_one_device(name, one_device):
    found, grads = _on_mesh(MESHES[name], jax.value_and_grad(lambda p, b: _loss(p, b, True)))
    expected, right = one_device
    # A mesh changes the order of sums and nothing else. An entry of a gradient is a sum over
    # B x S = 256 tokens; reordering n terms moves it by about sqrt(n) = 16 roundings of its size,
    # and the two layers behind it (about eight matmuls of up to 96 terms) double that.
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(found, expected, rtol=8 * eps)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=32 * eps * np.abs(b).max())


def test_dropout_is_the_same_on_every_mesh():
    def loss(params, batch):
        return _loss(params, batch, False)

    expected = jax.jit(loss)(nn.unbox(_init(jax.random.key(0))), _batch())
    for name in ("data=4 context=2", "data=2 fsdp=2 tensor=2"):
        found = _on_mesh(MESHES[name], loss)
        np.testing.assert_allclose(found, expected, rtol=8 * np.finfo(np.float32).eps)


def test_decoding_on_a_mesh_equals_one_device():
    model = Transformer(CONFIG)
    prompt = 20

    def decode(params, batch):
        tokens = batch["tokens"]
        positions = jnp.broadcast_to(jnp.arange(S), tokens.shape)
        written = jnp.arange(S) < jnp.full((B, 1), prompt)

        def step(cache, part):
            inputs = (tokens[:, part], positions[:, part], cache, written)
            x, new = model.apply({"params": params}, *inputs, method="read")
            cache = cache.write_run(new, positions[:, part])
            return model.apply({"params": params}, x, method="logits"), cache

        _, cache = step(KVCache.zeros(CONFIG, B, S), slice(0, prompt))
        return step(cache, slice(prompt, prompt + 1))[0]

    expected = jax.jit(decode)(nn.unbox(_init(jax.random.key(0))), _batch())
    found = _on_mesh(MESHES["data=2 fsdp=2 tensor=2"], decode)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_row_count_that_does_not_divide_is_named():
    with jax.set_mesh(sharding.make_mesh(MESHES["data=8"])):
        model = Transformer(dataclasses.replace(CONFIG, remat="none"))
        tokens = jax.ShapeDtypeStruct((6, S), jnp.int32)
        with pytest.raises(ValueError, match="batch=6 is split over mesh axis data=8"):
            jax.eval_shape(model.init, jax.random.key(0), tokens)
