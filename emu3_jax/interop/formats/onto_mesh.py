"""Loads weights from files onto the devices of a mesh, one tensor at a time.

The host holds the tensor being read and the piece being transferred, never a whole model: host
memory does not limit the size of the model.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

Path = tuple[str, ...]


class OntoMesh:
    """Arrays of given shapes and shardings, filled piece by piece.

    `arrays` holds the arrays written so far; unwritten parts stay zero (vocabulary padding).
    """

    def __init__(self, abstract: Mapping[Path, jax.ShapeDtypeStruct]):
        self._abstract = abstract
        self.arrays: dict[Path, jax.Array] = {}
        self._writers = {}

    def write(self, path: Path, layer: int | None, array: np.ndarray) -> None:
        """Writes an array at the origin of `path`, or of its `layer` if layers are stacked.

        Args:
          path: one of the names in `abstract`.
          layer: index on the first axis, or None for the whole array.
          array: as large as the target or smaller (without padding), of any floating type.
        """
        whole = self._abstract[path]
        if layer is None:
            self.arrays[path] = _placed(array, whole.shape, whole.dtype, whole.sharding)
            return
        if path not in self.arrays:
            zeros = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=whole.sharding)
            self.arrays[path] = zeros(whole.shape, whole.dtype)
            # Donated: the stack is changed in place.
            self._writers[path] = jax.jit(
                lambda stack, piece, index: stack.at[index].set(piece),
                donate_argnums=0,
                out_shardings=whole.sharding,
            )
        of_layer = NamedSharding(whole.sharding.mesh, PartitionSpec(*whole.sharding.spec[1:]))
        piece = _placed(array, whole.shape[1:], whole.dtype, of_layer)
        stack = self._writers[path](self.arrays[path], piece, layer)
        self.arrays[path] = stack.block_until_ready()  # else pieces queue up on the host


def _placed(array: np.ndarray, shape: tuple[int, ...], dtype, sharding) -> jax.Array:
    """`array`, padded with zeros to `shape`, in its shards; each is made separately."""

    def piece(index: tuple[slice, ...]) -> np.ndarray:
        starts = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
        out = np.zeros([stop - start for start, stop in starts], dtype)
        inside = tuple(
            slice(start, min(stop, size))
            for (start, stop), size in zip(starts, array.shape, strict=True)
        )
        part = array[inside]
        if math.prod(part.shape):
            out[tuple(slice(0, size) for size in part.shape)] = part
        return out

    return jax.make_array_from_callback(shape, sharding, piece)
