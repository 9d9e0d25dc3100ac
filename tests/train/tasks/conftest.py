"""Fixtures of the tests of tasks."""

import jax
import pytest

from emu3_jax import sharding
from emu3_jax.sharding import MeshConfig


@pytest.fixture(scope="session")
def first_device():
    """A mesh of one device."""
    return sharding.make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
