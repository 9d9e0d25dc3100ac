"""Which implementation runs where, and what is said where the one asked for cannot."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from emu3_jax import sharding
from emu3_jax.models.language.attention_kernels import choice
from emu3_jax.models.language.transformer import Transformer, TransformerConfig

TINY = TransformerConfig(64, 16, 24, 1, 2, 1, 8, dtype="bfloat16", dropout=0.0)


def _mesh(platform, context=1):
    """A mesh that is nowhere: enough to choose by."""
    device = AbstractDevice(device_kind="any", num_cores=1, platform=platform)
    sizes, types = (2, 1, context, 1), (AxisType.Auto,) * 4
    return AbstractMesh(sizes, sharding.AXES, types, abstract_device=device)


@pytest.mark.parametrize(
    "platform, context, length, dropout, dtype, expected",
    [
        ("tpu", 1, 512, 0.0, "bfloat16", "splash"),
        ("tpu", 16, 131_072, 0.0, "bfloat16", "splash"),
        ("tpu", 1, 512, 0.1, "bfloat16", "reference"),
        ("tpu", 1, 5120, 0.1, "bfloat16", "blockwise"),
        ("tpu", 1, 5120, 0.0, "float32", "blockwise"),
        ("gpu", 1, 5120, 0.0, "bfloat16", "cudnn"),
        ("gpu", 1, 131_072, 0.0, "bfloat16", "blockwise"),
        ("gpu", 4, 5120, 0.0, "bfloat16", "blockwise"),
        ("gpu", 1, 5120, 0.0, "float32", "blockwise"),
        ("cpu", 1, 352, 0.1, "float32", "triangle"),
        ("cpu", 1, 8192, 0.0, "bfloat16", "triangle"),
        ("cpu", 1, 8193, 0.0, "float32", "blockwise"),
        ("cpu", 1, 1025, 0.1, "float32", "blockwise"),
        ("cpu", 2, 1024, 0.0, "bfloat16", "reference"),
        ("cpu", 2, 1025, 0.1, "float32", "blockwise"),
    ],
)
def test_auto_by_machine_length_dropout_and_type(
    platform, context, length, dropout, dtype, expected
):
    with jax.sharding.use_abstract_mesh(_mesh(platform, context)):
        assert choice.choose("auto", length, dropout, dtype) == expected


def test_the_machine_is_that_of_the_mesh_else_the_default():
    assert sharding.platform() == "cpu"
    with jax.sharding.use_abstract_mesh(_mesh("tpu")):
        assert sharding.platform() == "tpu"
    with jax.set_mesh(sharding.make_mesh()):
        assert sharding.platform() == "cpu"


@pytest.mark.parametrize("name, needed", [("splash", "tpu"), ("cudnn", "gpu")])
def test_another_machine_is_one_sentence_before_anything_runs(name, needed):
    model = Transformer(dataclasses.replace(TINY, attention=name))
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    # Weights can be made anywhere.
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    message = f"model.attention='{name}' runs on {needed}, these devices are cpu: set"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.apply, variables, tokens)


@pytest.mark.parametrize("name, machine", [("cudnn", "gpu"), ("triangle", "cpu")])
def test_some_do_not_cut_rows(name, machine):
    with pytest.raises(
        ValueError, match=f"model.attention='{name}' cannot cut rows over mesh axis"
    ):
        choice.check_mesh(name, machine, 2)
    choice.check_mesh(name, machine, 1)


def test_dropout_of_probabilities_is_that_of_the_rest_unless_said():
    assert dataclasses.replace(TINY, dropout=0.1).probability_dropout == 0.1
    splash = dataclasses.replace(TINY, dropout=0.1, attention_dropout=0.0, attention="splash")
    assert splash.probability_dropout == 0.0
