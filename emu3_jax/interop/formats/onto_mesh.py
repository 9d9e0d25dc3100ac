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

from emu3_jax.models.language import int8

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
        self._store(path, layer, _placed(array, self._target(path, layer)))

    def _target(self, path: Path, layer: int | None) -> jax.ShapeDtypeStruct:
        """Shape, dtype and sharding of an array, or of one of its layers."""
        whole = self._abstract[path]
        if layer is None:
            return whole
        of_layer = NamedSharding(whole.sharding.mesh, PartitionSpec(*whole.sharding.spec[1:]))
        return jax.ShapeDtypeStruct(whole.shape[1:], whole.dtype, sharding=of_layer)

    def _store(self, path: Path, layer: int | None, piece: jax.Array) -> None:
        """Keeps a piece that is laid out as its target is."""
        if layer is None:
            self.arrays[path] = piece
            return
        whole = self._abstract[path]
        if path not in self.arrays:
            zeros = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=whole.sharding)
            self.arrays[path] = zeros(whole.shape, whole.dtype)
            # Donated: the stack is changed in place.
            self._writers[path] = jax.jit(
                lambda stack, piece, index: stack.at[index].set(piece),
                donate_argnums=0,
                out_shardings=whole.sharding,
            )
        stack = self._writers[path](self.arrays[path], piece, layer)
        self.arrays[path] = stack.block_until_ready()  # else pieces queue up on the host


class RoundedOntoMesh(OntoMesh):
    """As OntoMesh; a kernel that has a scale in `abstract` is rounded to int8 on its devices.

    So a device holds one kernel of one layer as floats at any time.
    """

    def __init__(self, abstract: Mapping[Path, jax.ShapeDtypeStruct], dtype: str):
        """`dtype` is the type of the floats that are rounded."""
        super().__init__(abstract)
        self._dtype = dtype

    def write(self, path: Path, layer: int | None, array: np.ndarray) -> None:
        """See `OntoMesh.write`; of a kernel the scales are written as well."""
        scale = (*path[:-1], int8.SCALE)
        if path[-1] != int8.KERNEL or scale not in self._abstract:
            super().write(path, layer, array)
            return
        target = self._target(path, layer)
        floats = jax.ShapeDtypeStruct(target.shape, self._dtype, sharding=target.sharding)
        numbers, scales = int8.quantized(_placed(array, floats), self._target(scale, layer))
        self._store(path, layer, numbers)
        self._store(scale, layer, scales)


def _placed(array: np.ndarray, target: jax.ShapeDtypeStruct) -> jax.Array:
    """`array` in the shards of its target, padded with zeros; each is made separately."""
    shape, dtype = target.shape, target.dtype

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

    return jax.make_array_from_callback(shape, target.sharding, piece)
