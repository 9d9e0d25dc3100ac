"""Attention in blocks: which are visited, and that neither blocks nor mesh change the result."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu3_jax import sharding
from emu3_jax.models.language import zigzag
from emu3_jax.models.language.attention_kernels import blockwise as blocks_lib
from emu3_jax.models.language.attention_kernels import probability_dropout
from emu3_jax.models.language.attention_kernels import splash as splash_lib
from emu3_jax.models.language.attention_kernels.blockwise import blockwise
from emu3_jax.models.language.attention_kernels.reference import reference
from emu3_jax.models.language.attention_kernels.splash import splash
from emu3_jax.models.language.attention_kernels.triangle import triangle
from emu3_jax.models.language.transformer import REMAT
from emu3_jax.sharding import MeshConfig

B, S, N, K, H = 2, 16, 4, 2, 8
SEGMENTS = np.array([[1] * 5 + [2] * 7 + [0] * 4, [0] * 2 + [7] * 6 + [9] * 8], np.int32)
MESHES = {
    "fsdp=2 context=2 tensor=2": MeshConfig(fsdp=2, context=2, tensor=2),
    "data=2 context=4": MeshConfig(data=2, fsdp=1, context=4),
}


def test_pairs_are_the_lower_triangle():
    found = blocks_lib.pairs([[0]], chunk=12, q_size=4, k_size=4)
    assert found.tolist() == [[[0, 0], [1, 0], [1, 1], [2, 0], [2, 1], [2, 2]]]
    # Keys in blocks of 5: query 3 needs the first block, query 7 the first two, query 11 all.
    assert np.bincount(blocks_lib.pairs([[0]], 12, 4, 5)[0, :, 0]).tolist() == [1, 2, 3]


@pytest.mark.parametrize("devices", [2, 4, 16])
def test_devices_visit_as_many_blocks(devices):
    length, size = 64 * devices, 8
    starts = zigzag.chunk_starts(length, devices)
    found = blocks_lib.pairs(starts, length // starts.size, size, size)
    blocks = length // size
    assert found.shape == (devices, blocks * (blocks + 1) // 2 // devices, 2)
    assert found[:, :, 1].max() == blocks - 1  # no list was filled up


def test_shorter_lists_are_filled_with_a_block_behind_the_end():
    # Chunks of 3 and blocks of 4: the first device needs 1 + 3 key blocks, the second 2 + 3.
    found = blocks_lib.pairs(zigzag.chunk_starts(12, 2), 3, 4, 4)
    assert found[0].tolist() == [[0, 0], [1, 0], [1, 1], [1, 2], [0, 3]]
    assert found[1].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2]]


def test_splash_computes_blocks_below_the_diagonal_with_a_document_in_common():
    # In the second row a document follows on padding, which is as foreign to it as another one.
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2, 2, 2, 0, 0, 0], [0, 0, 0] + [5] * 9])
    by_queries, by_keys = splash_lib._schedule(jnp.arange(12), segments, segments, 3, 3)
    first = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    second = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
    assert by_queries.block_mask[0].tolist() == first + second
    assert by_keys.block_mask[0].tolist() == [a + b for a, b in zip(first, second, strict=True)]
    # What is not computed is not loaded: it stands for the first block that is.
    assert by_queries.data_next[0].tolist() == [
        [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 2, 1], [3, 3, 3, 3],
        [4, 4, 4, 4], [5, 5, 5, 5], [5, 5, 6, 5], [5, 5, 6, 7],
    ]  # fmt: skip
    assert by_keys.data_next[0].tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 2, 2, 3, 4, 6, 6, 7],
        [0, 1, 2, 3, 4, 7, 7, 7],
    ]
    np.testing.assert_array_equal(by_keys.q_sequence, np.arange(24))


def test_splash_in_several_blocks():
    """Two rows of three blocks of 128, with documents that begin inside of blocks."""
    length = 384
    segments = jnp.stack(
        [
            jnp.repeat(jnp.array([1, 2, 3, 0]), jnp.array([100, 30, 200, 54])),
            jnp.repeat(jnp.array([0, 1, 2, 3]), jnp.array([140, 4, 120, 120])),
        ]
    )
    rng = np.random.default_rng(2)
    q, k, v, w = (rng.normal(size=(2, length, n, H)).astype(np.float32) for n in (N, K, K, N))

    def run(attend):
        def total(q, k, v):
            out = attend(q, k, v, segments)
            return jnp.sum(out * w), out

        grads, out = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(q, k, v)
        return out, *grads

    found = run(functools.partial(splash, interpret=True))
    for a, b in zip(found, run(reference), strict=True):
        # Sums of up to 200 terms of 8 products: sqrt(1600) = 40 roundings of the largest entry.
        np.testing.assert_allclose(a, b, rtol=0, atol=40 * 2**-23 * np.abs(b).max())


def _count(jaxpr, name):
    """How often a primitive stands in a jaxpr, where anybody reads its results."""
    count = 0
    for equation in jaxpr.eqns:
        if all(str(result) == "_" for result in equation.outvars):
            continue  # the compiler drops it
        inner = [] if equation.primitive.name == name else jax.tree.leaves(equation.params)
        inner = [getattr(value, "jaxpr", value) for value in inner]
        count += sum(_count(value, name) for value in inner if hasattr(value, "eqns"))
        count += equation.primitive.name == name
    return count


@pytest.mark.parametrize(
    "attend, primitive, once",
    [
        (blockwise, "scan", 2),
        (triangle, "scan", 2),
        (functools.partial(splash, interpret=True), "pallas_call", 3),
    ],
    ids=["blockwise", "triangle", "splash"],
)
def test_remat_keeps_what_the_backward_pass_needs(attend, primitive, once):
    def calls(remat):
        policy = REMAT[remat]
        total = jax.checkpoint(lambda *a: jnp.sum(attend(*a) ** 2), policy=policy)
        arrays = [jnp.zeros((B, S, n, H)) for n in (N, K, K)]
        program = jax.make_jaxpr(jax.grad(total))(*arrays, jnp.asarray(SEGMENTS))
        return _count(program.jaxpr, primitive)

    assert calls("attention") == once
    assert calls("full") == once + 1


def test_what_is_dropped_follows_from_its_position():
    key, rate = jax.random.key(1), 0.4
    whole = probability_dropout.kept(key, rate, jnp.arange(2), jnp.arange(3), jnp.arange(9), 0, 30)
    assert whole.shape == (2, 3, 9, 30)
    part = probability_dropout.kept(
        key, rate, jnp.arange(1, 2), jnp.arange(1, 3), jnp.array([8, 2]), 13, 11
    )
    np.testing.assert_array_equal(part, whole[1:, 1:, jnp.array([8, 2]), 13:24])
    many = np.asarray(
        probability_dropout.kept(key, rate, jnp.arange(4), jnp.arange(4), jnp.arange(64), 0, 64)
    )
    share = 1 - 102 / 256
    # Four standard errors of a mean of so many draws; five of a correlation of neighbours.
    assert abs(np.mean(many) - share) < 4 * np.sqrt(share * (1 - share) / many.size)
    for axis in range(4):
        a, b = (np.take(many, index, axis).ravel() for index in (0, 1))
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(a.size)


def _value_and_gradients(attend, shared, dropout):
    """Output and gradients in row order; `shared`: in between in zigzag order."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(B, S, n, H)).astype(np.float32) for n in (N, K, K, N)]

    def total(q, k, v, w):
        inputs = (q, k, v, jnp.asarray(SEGMENTS))
        if shared:
            inputs = map(zigzag.enter, inputs)
        out = attend(*inputs, dropout, jax.random.key(3))
        out = zigzag.leave(out) if shared else out
        return jnp.sum(out * w), out

    grads, out = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*arrays)
    return [np.asarray(a) for a in (out, *grads)]


@functools.cache
def _on_one_device(dropout):
    return _value_and_gradients(reference, False, dropout)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(
    "attend, dropout",
    [
        (functools.partial(blockwise, block=4), 0.3),
        (functools.partial(blockwise, block=3), 0.0),
        (functools.partial(splash, interpret=True), 0.0),
    ],
    ids=["blockwise with dropout", "blockwise, blocks that do not fill chunks", "splash"],
)
def test_any_mesh_gives_the_values_and_gradients_of_one_device(mesh, attend, dropout):
    _check_on(sharding.make_mesh(MESHES[mesh]), attend, True, dropout)


def test_whole_rows_on_four_devices_give_the_values_and_gradients_of_one():
    """Rows and heads on several devices drop the probabilities of one device."""
    mesh = sharding.make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    _check_on(mesh, functools.partial(triangle, block=5), False, 0.3)


def _check_on(mesh, attend, shared, dropout):
    with jax.set_mesh(mesh):
        found = _value_and_gradients(attend, shared, dropout)
    for a, b in zip(found, _on_one_device(dropout), strict=True):
        # As on one device: sqrt(16 x 8) = 11 roundings of the largest entry.
        np.testing.assert_allclose(a, b, rtol=0, atol=11 * 2**-23 * np.abs(b).max())
