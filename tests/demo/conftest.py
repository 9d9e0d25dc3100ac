"""A tiny model on show."""

import contextlib

import pytest
from tiny_models import GUIDED, LIMITS

from emu3_jax.demo.exhibit import Exhibit
from emu3_jax.generate.serving import Serving


@pytest.fixture(scope="session")
def exhibit(tiny_bundle):
    with contextlib.ExitStack() as stack:
        serving = stack.enter_context(Serving(tiny_bundle, rows=4))
        yield Exhibit(tiny_bundle, serving, LIMITS, 64, GUIDED, ("a", "b"), fps=4.0)
