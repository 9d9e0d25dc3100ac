"""Decisions for a GPU, without one."""

import types

import jax
import pytest

from emu3_jax import sharding
from emu3_jax.models import gpu


def weights(size: int, **memory):
    """Two arrays on a device with so much memory."""
    device = types.SimpleNamespace(memory_stats=lambda: memory)
    array = types.SimpleNamespace(nbytes=size // 2, devices=lambda: [device])
    return {"a": array, "b": array}


@pytest.mark.parametrize(
    "platform, memory, expected",
    [
        ("gpu", dict(bytes_limit=60, bytes_in_use=20), True),
        ("gpu", dict(bytes_limit=59, bytes_in_use=20), False),
        ("gpu", {}, False),
        ("tpu", dict(bytes_limit=60, bytes_in_use=20), False),
    ],
)
def test_layers_are_listed_where_the_copy_finds_room(platform, memory, expected, monkeypatch):
    monkeypatch.setattr(gpu, "platform", lambda: platform)
    assert gpu.unscanned_layers(weights(20, **memory)) == expected


def test_layers_of_several_devices_stay_stacked(monkeypatch):
    monkeypatch.setattr(gpu, "platform", lambda: "gpu")
    with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:2])):
        assert not gpu.unscanned_layers(weights(2, bytes_limit=60))
    assert not gpu.unscanned_layers({"a": jax.numpy.zeros(2)})  # a CPU tells no memory
