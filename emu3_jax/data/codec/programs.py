"""Programs that run batches of canvases: a vision tokenizer's two halves, and other networks."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from emu3_jax import compiling, sharding
from emu3_jax.data import media
from emu3_jax.data.codec.canvases import Batcher, Grid

_EACH: Grid = (1, 1, 1)


class Program:
    """A jitted function (weights, batch, sizes) → results; rows are spread over the mesh.

    Attributes:
      taken, made: as of Batcher.
    """

    def __init__(
        self,
        name: str,
        function: Callable,
        weights: Any,
        mesh: Mesh | None = None,
        transposes: bool = True,
    ):
        """Takes the function and where it runs.

        Args:
          name: what it does, for the log.
          function: jitted; (weights, batch, sizes) → results.
          weights: a tree.
          mesh: where to run; None: the mesh that is set when batches run, if any.
          transposes: whether portraits are transposed: the function is of convolutions whose
            kernels are then transposed, too.
        """
        self._name, self._function, self._mesh = name, function, mesh
        self._transposes = transposes
        self.taken, self.made = _EACH, None
        with self._on_mesh():
            self._weights = sharding.on_devices(weights)

    def run(self, batch: np.ndarray, sizes: np.ndarray, swapped: bool) -> np.ndarray:
        """Results of a batch; see Batcher. uint8 becomes float32 in [-1, 1]."""
        batch = media.to_model(batch) if batch.dtype == np.uint8 else batch
        with self._on_mesh():
            mesh = jax.sharding.get_abstract_mesh()
            program = (self._function, mesh, batch.shape)
            with compiling.call(program, f"{self._name} {' x '.join(map(str, batch.shape))}"):
                weights = self._swapped if swapped else self._weights
                arrays = (sharding.spread(array, "batch") for array in (batch, sizes))
                return sharding.to_host(self._function(weights, *arrays))

    def batcher(self, images: int, clips: int = 1, **options) -> Batcher:
        """A Batcher with these rows for images and clips, rounded up to the devices' multiple.

        `options` are `finished` and `common` of Batcher.
        """
        with self._on_mesh():
            ways = sharding.ways_of(jax.sharding.get_abstract_mesh(), "batch")
        rows = {"image": -(-images // ways) * ways, "video": -(-clips // ways) * ways}
        options["transposes"] = self._transposes
        return Batcher(self.run, rows, self.taken, self.made, **options)

    @functools.cached_property
    def _swapped(self):
        return transposed(self._weights)

    def _on_mesh(self):
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)


class Encoding(Program):
    """uint8 pixels of whole tokens to int32 codes."""

    def __init__(self, tokenizer: tuple[Any, Any], mesh: Mesh | None = None):
        """Takes (module, variables); `mesh` as for Program."""
        module, variables = tokenizer
        super().__init__("encoding", jitted(module, "encode"), variables, mesh)
        self.taken, self.made = _factors(module.config), _EACH


class Decoding(Program):
    """int32 codes to uint8 pixels."""

    def __init__(self, tokenizer: tuple[Any, Any], mesh: Mesh | None = None):
        """Takes (module, variables); `mesh` as for Program."""
        module, variables = tokenizer
        super().__init__("decoding", jitted(module, "decode"), variables, mesh)
        self.taken, self.made = _EACH, _factors(module.config)

    def run(self, batch: np.ndarray, sizes: np.ndarray, swapped: bool) -> np.ndarray:
        """As `Program.run`."""
        return media.to_uint8(super().run(batch, sizes, swapped))


@functools.lru_cache(maxsize=4)
def jitted(module: Any, method: str) -> Callable:
    """`encode` or `decode` of a vision tokenizer as (variables, batch, sizes) → array, compiled."""
    return jax.jit(functools.partial(module.apply, method=method))


@jax.jit
def transposed(weights):
    """Weights of a convolutional network for images whose height and width are exchanged."""
    return jax.tree.map(lambda x: x.swapaxes(-4, -3) if x.ndim >= 4 else x, weights)


def _factors(config: Any) -> Grid:
    return (config.temporal_downsample_factor, *[config.spatial_factor] * 2)
