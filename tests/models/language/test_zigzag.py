"""The order of tokens in rows that several devices share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu3_jax import sharding
from emu3_jax.models.language import zigzag
from emu3_jax.sharding import MeshConfig

MESHES = {2: MeshConfig(data=2, context=2, fsdp=1, tensor=2), 8: MeshConfig(context=8)}


def test_a_device_holds_a_chunk_and_its_mirror_image():
    assert zigzag.row_positions(16, 4).reshape(4, 4).tolist() == [
        [0, 1, 14, 15],
        [2, 3, 12, 13],
        [4, 5, 10, 11],
        [6, 7, 8, 9],
    ]
    np.testing.assert_array_equal(zigzag.row_positions(6, 1), np.arange(6))


@pytest.mark.parametrize("devices", [2, 4, 16])
def test_every_device_sees_as_many_keys(devices):
    keys = 1 + zigzag.row_positions(8 * devices, devices).reshape(devices, -1)
    assert len(set(keys.sum(axis=1))) == 1


@pytest.mark.parametrize("devices", MESHES)
def test_there_and_back(devices):
    x = jnp.arange(4 * 32 * 3).reshape(4, 32, 3)
    with jax.set_mesh(sharding.make_mesh(MESHES[devices])):
        there = jax.jit(zigzag.enter)(x)
        np.testing.assert_array_equal(there, x[:, zigzag.row_positions(32, devices)])
        np.testing.assert_array_equal(jax.jit(zigzag.leave)(there), x)
    np.testing.assert_array_equal(zigzag.natural_order(there, devices, axis=1), x)


def test_the_exchange_is_permutations_of_chunks_and_nothing_else():
    x = jax.ShapeDtypeStruct((4, 32, 3), jnp.float32)
    with jax.set_mesh(sharding.make_mesh(MESHES[8])):
        laid_out = sharding.batch_sharding(jax.sharding.get_mesh())
        text = jax.jit(zigzag.enter, in_shardings=laid_out).lower(x).compile().as_text()
    assert text.count(" collective-permute(") == 2
    assert "all-gather" not in text and "all-to-all" not in text


def test_outside_a_mesh_and_for_one_token_nothing_moves():
    x = jnp.arange(6).reshape(1, 6)
    assert zigzag.enter(x) is x
    with jax.set_mesh(sharding.make_mesh(MESHES[8])):
        assert zigzag.parts(1) == 1


def test_a_length_that_cannot_be_cut_is_named():
    message = "data.sequence_length=24 .* context=8, so it must be a multiple of 16"
    with pytest.raises(ValueError, match=message):
        zigzag.check_length(sharding.make_mesh(MESHES[8]), "data.sequence_length", 24)
