"""What a transformer's start gives: a function that can be asked for all weights or one by one."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax

from emu3_jax.interop.formats.onto_mesh import Path


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """The result of `Task.initial_weights`: a function from variables to variables.

    Attributes:
      read: from flat params on a mesh to (path, array) of those that the start gives, leaf by leaf;
        as `llama.leaves`. None if it gives no layers.
      project: changes params further, by the codebook; None if it is not used.
    """

    read: Callable[[Mapping[Path, Any]], Iterator[tuple[Path, jax.Array]]] | None
    project: Callable[[dict], dict] | None

    def __call__(self, variables: dict) -> dict:
        """Returns the variables with the params that they start from."""
        params = nn.unbox(variables["params"])
        if self.read is not None:
            flat = flax.traverse_util.flatten_dict(params)
            params = flax.traverse_util.unflatten_dict({**flat, **dict(self.read(flat))})
        if self.project is not None:
            params = self.project(params)
        return {**variables, "params": params}
