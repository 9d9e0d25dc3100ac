"""Muon against the same steps in float64, on layers stacked and not, on one device and on eight."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu3_jax import sharding
from emu3_jax.models.language.transformer import Transformer, TransformerConfig
from emu3_jax.sharding import MeshConfig
from emu3_jax.train import muon
from emu3_jax.train.optimizer import OptimizerConfig, make_optimizer
from emu3_jax.train.step import init_state

SETTINGS = dict(kind="muon", learning_rate=0.1, warmup_steps=0, schedule="constant", clip_norm=0.0)


def model(scan_layers=True):
    return Transformer(
        TransformerConfig(64, 16, 32, 2, 4, 2, 4, vocab_multiple=64, scan_layers=scan_layers)
    )


def params_of(scan_layers=True):
    variables = model(scan_layers).init(jax.random.key(0), jnp.ones((1, 4), jnp.int32))
    return nn.unbox(variables["params"])


def random_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape), tree)


def as_float32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def orthogonalised(matrix):
    """Five Newton-Schulz steps as a polynomial of the singular values, in float64."""
    u, s, vt = np.linalg.svd(matrix / np.linalg.norm(matrix), full_matrices=False)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u * s @ vt


def test_two_steps_equal_muon_in_float64():
    config = OptimizerConfig(**SETTINGS, weight_decay=0.3, momentum=0.9)
    optimizer, _ = make_optimizer(config, 5)
    params = params_of()["layers"]
    steps = [random_like(params, seed) for seed in (1, 2)]
    found, state = params, optimizer.init(params)
    for step, gradients in enumerate(steps):
        updates, state = optimizer.update(as_float32(gradients), state, found, step=step)
        found = jax.tree.map(jnp.add, found, updates)

    # (layer, rows of its matrix): two stacked layers of width 16, MLP of 32, heads of 4.
    for path, rows in (
        (("attention", "query"), 16),
        (("attention", "key"), 16),
        (("attention", "output"), 16),
        (("gate",), 16),
        (("down",), 32),
    ):
        pick = lambda tree, path=path: np.asarray(_at(tree, path)["kernel"], np.float64)  # noqa: E731
        for layer in range(2):
            weights, momentum = pick(params)[layer].reshape(rows, -1), 0.0
            for t, gradients in enumerate(steps, start=1):
                gradient = pick(gradients)[layer].reshape(rows, -1)
                momentum = 0.9 * momentum + 0.1 * gradient
                # Nesterov's, both parts with the bias of their start taken away.
                ahead = 0.9 * momentum / (1 - 0.9 ** (t + 1)) + 0.1 * gradient / (1 - 0.9**t)
                step = orthogonalised(ahead) * 0.2 * np.sqrt(max(weights.shape))
                weights = weights - 0.1 * (step + 0.3 * weights)
            # The polynomial's slope of 3.4445 to the fifth enlarges float32's error of the smallest
            # singular values: 500 x 2^-24 x 0.1 x 0.2 x sqrt(32).
            np.testing.assert_allclose(pick(found)[layer].reshape(rows, -1), weights, atol=4e-6)


def _at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


@pytest.mark.parametrize("scan_layers", [True, False])
def test_embeddings_output_layer_and_norms_move_by_adamw(scan_layers):
    params = params_of(scan_layers)
    gradients = as_float32(random_like(params, 3))
    moved = {}
    for kind in ("muon", "adamw"):
        optimizer, _ = make_optimizer(OptimizerConfig(**SETTINGS | dict(kind=kind)), 5)
        updates, _ = optimizer.update(gradients, optimizer.init(params), params, step=0)
        moved[kind] = jax.tree_util.tree_flatten_with_path(updates)[0]
    same = {True: set(), False: set()}
    for (path, a), (_, b) in zip(moved["muon"], moved["adamw"], strict=True):
        name = "/".join(part.key for part in path).removeprefix("layers/")
        same[bool(np.array_equal(a, b))].add(name.split("/", 1)[-1] if "layers_" in name else name)
    assert {"embed/embedding", "lm_head/kernel", "final_norm/scale"} <= same[True]
    assert not any(name.endswith("kernel") and name != "lm_head/kernel" for name in same[True])
    assert all(name.endswith("kernel") for name in same[False])
    assert len(same[False]) >= 7


def test_an_update_is_as_large_as_one_of_adamw():
    params = params_of()
    optimizer, _ = make_optimizer(OptimizerConfig(**SETTINGS, weight_decay=0.0), 5)
    gradients = as_float32(random_like(params, 4))
    updates, _ = optimizer.update(gradients, optimizer.init(params), params, step=0)
    for name in ("gate", "up", "down"):
        # The singular values lie in 0.7 to 1.2 (Jordan 2024), and 0.2 is Adam's, times the rate.
        size = np.sqrt(np.mean(np.square(updates["layers"][name]["kernel"])))
        assert 0.7 <= size / (0.1 * 0.2) <= 1.2, name


class Language:
    """As much of a task as creating its state needs."""

    def init(self, key):
        return model().init(key, jnp.zeros((1, 4), jnp.int32))


def test_eight_devices_move_as_one():
    optimizer, _ = make_optimizer(OptimizerConfig(**SETTINGS), 5)
    found = []
    for mesh in (
        sharding.make_mesh(MeshConfig(fsdp=1), jax.devices()[:1]),
        sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)),
    ):
        with jax.set_mesh(mesh):
            state = init_state(Language(), optimizer, jax.random.key(0), mesh, ema=False)
            gradients = as_float32(random_like(state.params, 5))
            gradients = jax.tree.map(
                lambda g, p: jax.device_put(g, p.sharding), gradients, state.params
            )
            updates, new = jax.jit(optimizer.update)(
                gradients, state.opt_state, state.params, step=0
            )
        found.append(jax.tree.map(np.asarray, updates))
    masked, _ = new[1][0]
    momentum = masked.inner_state[0].mu["layers"]["gate"]["kernel"]
    assert momentum.addressable_shards[0].data.size == momentum.size // 4  # as its kernel
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=4e-6), *found)


def test_a_model_without_layers_of_a_transformer_is_refused():
    optimizer, _ = make_optimizer(OptimizerConfig(**SETTINGS), 5)
    with pytest.raises(ValueError, match="kind=muon moves the matrices of a transformer's layers"):
        optimizer.init({"conv": {"kernel": jnp.ones((3, 3, 4, 4))}})


def test_what_is_a_matrix():
    found = muon.is_matrix(params_of())
    assert found["layers"]["attention"]["output"]["kernel"] is True
    assert found["lm_head"]["kernel"] is False and found["embed"]["embedding"] is False
