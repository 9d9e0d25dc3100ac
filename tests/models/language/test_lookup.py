"""Looking tokens up in a table in pieces: the rows and the gradients of one device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu3_jax import sharding
from emu3_jax.models.language.lookup import lookup
from emu3_jax.sharding import MeshConfig

B, S, D, V = 4, 6, 8, 20

MESHES = {
    "every axis but data": MeshConfig(fsdp=2, context=2, tensor=2),
    "data and tensor": MeshConfig(data=2, fsdp=1, tensor=4),
    "fsdp and context": MeshConfig(data=1, fsdp=4, context=2),
}


def _value_and_gradient(table, tokens, cotangent):
    x, backward = jax.vjp(lambda t: lookup(t, tokens, jnp.float32), table)
    return x, backward(cotangent)[0]


def _inputs(rows=B):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(V, D)).astype(np.float32)
    tokens = rng.integers(0, V, (rows, S)).astype(np.int32)
    return table, tokens, rng.normal(size=(rows, S, D)).astype(np.float32)


def _place(mesh, table, tokens, cotangent):
    names = (("vocab", "embed"), ("batch", "sequence"), ("batch", "sequence", None))
    return [
        jax.device_put(a, jax.NamedSharding(mesh, sharding.partition_spec(*n)))
        for a, n in zip((table, tokens, cotangent), names, strict=True)
    ]


@pytest.mark.parametrize("name", MESHES)
def test_a_table_in_pieces_gives_the_rows_and_gradients_of_a_whole_one(name):
    table, tokens, cotangent = _inputs()
    mesh = sharding.make_mesh(MESHES[name])
    with jax.set_mesh(mesh):
        placed = _place(mesh, table, tokens, cotangent)
        compiled = jax.jit(_value_and_gradient).lower(*placed).compile()
        x, gradient = compiled(*placed)
    np.testing.assert_array_equal(x, table[tokens])
    expected = np.zeros_like(table)
    np.add.at(expected, tokens, cotangent)
    # Sums of at most 24 terms of order 1: 24 roundings of 2^-24.
    np.testing.assert_allclose(gradient, expected, atol=24 * 4 * 2.0**-24)
    assert gradient.sharding.spec == sharding.partition_spec("vocab", "embed")
    # Nothing as large as the table crosses the mesh, only tokens and their vectors.
    gathered = re.findall(r"= (\w+)\[[\d,]*\]\S* all-gather\(", compiled.as_text())
    assert set(gathered) <= {"s32"}, gathered


def test_a_single_row_is_looked_up_without_cutting_it():
    table, tokens, _ = _inputs(rows=1)
    with jax.set_mesh(sharding.make_mesh(MESHES["fsdp and context"])):
        found = jax.jit(lambda t, i: lookup(t, i, jnp.bfloat16))(table, tokens[:, :5])
    np.testing.assert_array_equal(found, jnp.asarray(table[tokens[:, :5]], jnp.bfloat16))
