"""Meshes, the rules table, and errors that name the axis and the size."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from emu3_jax import sharding
from emu3_jax.sharding import MeshConfig


def test_the_free_axis_takes_the_devices_that_are_left():
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=-1, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "context": 1, "tensor": 2}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
    "config, message",
    [
        (MeshConfig(data=-1, fsdp=-1), "at most one axis may be -1"),
        (MeshConfig(tensor=3), "multiple of 3"),
        (MeshConfig(data=2, fsdp=2), "needs 4 devices, there are 8"),
        (MeshConfig(data=0), "mesh.data=0"),
    ],
)
def test_bad_meshes_say_what_is_wrong(config, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(config)


@pytest.mark.parametrize(
    "logical, name, size, message",
    [
        ("heads", "num_heads", 6, "num_heads=6 is split over mesh axis tensor=4"),
        ("batch", "global batch", 5, "global batch=5 is split over mesh axis fsdp=2"),
    ],
)
def test_a_size_that_does_not_divide_names_axis_and_size(logical, name, size, message):
    mesh = sharding.make_mesh(MeshConfig(fsdp=2, tensor=4))
    with pytest.raises(ValueError, match=message):
        sharding.check_divides(mesh, logical, name, size)
    sharding.check_divides(mesh, logical, name, 8)


def test_sequence_over_context():
    mesh = sharding.make_mesh(MeshConfig(fsdp=2, context=4))
    with pytest.raises(ValueError, match="sequence length=510 is split over mesh axis context=4"):
        sharding.check_divides(mesh, "sequence", "sequence length", 510)


def test_embed_is_stored_in_pieces_but_whole_on_activations():
    assert sharding.partition_spec("embed", "mlp") == P(("fsdp", "context"), "tensor")
    assert sharding.partition_spec("batch", "sequence", "embed") == P(
        ("data", "fsdp"), "context", None
    )


def test_an_unknown_logical_name_is_an_error():
    with pytest.raises(ValueError, match="unknown logical axis 'head'.*heads"):
        sharding.partition_spec("batch", "head")


def _init(rng, features=8):
    kernel = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("embed", "mlp"))
    return {"params": {"kernel": kernel(rng, (16, features)), "count": jnp.zeros(())}}


def test_state_shardings_follow_the_boxes():
    mesh = sharding.make_mesh(MeshConfig(fsdp=4, tensor=2))
    shardings = sharding.state_shardings(jax.eval_shape(_init, jax.random.key(0)), mesh)
    state = jax.jit(lambda key: nn.unbox(_init(key)), out_shardings=shardings)(jax.random.key(0))
    assert state["params"]["kernel"].addressable_shards[0].data.shape == (4, 4)
    assert state["params"]["count"].sharding.is_fully_replicated
    np.testing.assert_array_equal(
        state["params"]["kernel"], nn.unbox(_init(jax.random.key(0)))["params"]["kernel"]
    )


def test_state_shardings_name_the_array_that_does_not_divide():
    mesh = sharding.make_mesh(MeshConfig(fsdp=1, tensor=8))
    abstract = jax.eval_shape(lambda key: _init(key, features=12), jax.random.key(0))
    with pytest.raises(ValueError, match=r"kernel.*\(mlp\)=12 .*tensor=8"):
        sharding.state_shardings(abstract, mesh)


def test_a_kernel_is_whole_where_the_mesh_does_not_divide_its_channels():
    init = nn.with_logical_partitioning(nn.initializers.ones, (None, "conv_out"))
    mesh = sharding.make_mesh(MeshConfig(fsdp=4, context=2))
    for channels, piece in ((16, 2), (12, 12)):
        abstract = jax.eval_shape(lambda key, n=channels: init(key, (3, n)), jax.random.key(0))
        assert sharding.state_shardings(abstract, mesh).shard_shape((3, channels)) == (3, piece)


def test_constrain_is_nothing_without_a_mesh_and_an_error_where_it_cannot_divide():
    x = jnp.ones((6, 4))
    assert sharding.constrain(x, "batch", "sequence") is x
    mesh = sharding.make_mesh(MeshConfig(data=4, fsdp=2))
    with jax.set_mesh(mesh):
        constrained = jax.jit(lambda x: sharding.constrain(x, "batch", None))
        assert constrained(jnp.ones((8, 4))).sharding.spec == P(("data", "fsdp"))
        constrained(jnp.ones((1, 4)))
        with pytest.raises(ValueError, match="batch=6 is split over mesh axis data=4 x fsdp=2"):
            constrained(x)
