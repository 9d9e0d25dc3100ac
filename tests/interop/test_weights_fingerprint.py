"""Which weights these are, whatever their sharding, their type and the padding of their ids."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from emu3_jax import sharding
from emu3_jax.interop.language.weights_fingerprint import weights_fingerprint
from emu3_jax.sharding import MeshConfig

IDS = 30  # of 32 rows


def of(params, dtype="float32"):
    return weights_fingerprint(params, IDS, dtype)


def weights(**changes):
    rng = np.random.default_rng(0)
    shapes = {"embed": {"embedding": (32, 8)}, "layer": {"kernel": (8, 16)}}
    params = jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    return params | changes


def test_it_is_of_values_alone():
    params = weights()
    mesh = sharding.make_mesh(MeshConfig())
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    assert of(jax.device_put(params, split)) == of(params)
    table = params["embed"]["embedding"]
    padding = table.copy()
    padding[-1] += 1
    assert of(weights(embed={"embedding": padding})) == of(params)
    last, swapped = table.copy(), table.copy()
    last[3, 0] = np.nextafter(last[3, 0], np.float32(9))
    swapped[3:5] = table[3:5][::-1]
    assert len({of(weights(embed={"embedding": t})) for t in (table, last, swapped)}) == 3


def test_rounded_it_is_that_of_an_export():
    params = weights()
    exported = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    assert of(exported, "bfloat16") == of(params, "bfloat16")
    assert of(exported) != of(params)
    exported["layer"]["kernel"] = exported["layer"]["kernel"].at[0, 0].multiply(1.01)
    assert of(exported, "bfloat16") != of(params, "bfloat16")
