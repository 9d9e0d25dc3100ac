"""Encoding for datasets: media of one size are collected into batches for the device."""

import functools
from collections import defaultdict
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from emu3_jax import sharding
from emu3_jax.data import media
from emu3_jax.data.codec.fingerprint import vision_fingerprint


@functools.partial(jax.jit, static_argnums=0)
def encode_batch(module, variables, pixels):
    """Codes int32 [B, h, w] or [B, t, h, w] of float pixels in [-1, 1], see VisionTokenizer."""
    return module.apply(variables, pixels, method="encode")


def mesh_of(devices) -> Mesh:
    """The mesh on which `encode_batch` runs: replicated weights, the batch split over devices."""
    return sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=1), devices)


class VisionEncoder:
    """Codes of uint8 media, computed in batches of one shape, split over devices (all local ones).

    `spatial_factor`, `temporal_factor`, `codebook_size` and `fingerprint` are the tokenizer's.
    """

    def __init__(self, module, variables, devices=None):
        config = module.config
        self.spatial_factor = config.spatial_factor
        self.temporal_factor = config.temporal_downsample_factor
        self.codebook_size = config.codebook_size
        self.fingerprint = vision_fingerprint(config, variables)
        self._mesh = mesh_of(devices or jax.local_devices())
        self._split = NamedSharding(self._mesh, sharding.partition_spec("batch"))
        self._variables = jax.device_put(variables, sharding.replicated(self._mesh))
        self._encode = functools.partial(encode_batch, module)

    def encode(self, pixels: np.ndarray, rows: int) -> np.ndarray:
        """uint8 [B,H,W,3] or [B,T,H,W,3] -> int32 codes [B,h,w] or [B,t,h,w].

        The batch is padded to `rows` (and to a multiple of the devices), so that each shape
        compiles once.
        """
        devices = self._mesh.size
        rows = -(-max(rows, len(pixels)) // devices) * devices
        filling = np.broadcast_to(pixels[:1], (rows - len(pixels), *pixels.shape[1:]))
        batch = media.to_model(np.concatenate([pixels, filling]))
        with jax.set_mesh(self._mesh):  # else code for a single CPU is chosen
            codes = self._encode(self._variables, jax.device_put(batch, self._split))
        return np.asarray(codes)[: len(pixels)]


class Batcher:
    """Collects media by shape and passes the codes of each to its callback.

    `add` encodes once one shape has a full batch, `flush` encodes the rest. Only the order of `add`
    decides which media share a batch.
    """

    def __init__(self, encoder: VisionEncoder, image_batch: int, clip_batch: int):
        self._encoder = encoder
        self._rows = {3: image_batch, 4: clip_batch}
        self._waiting: dict[tuple[int, ...], list] = defaultdict(list)

    def add(self, pixels: np.ndarray, done: Callable[[np.ndarray], None]) -> None:
        """Adds uint8 [H,W,3] or [T,H,W,3]; `done(codes)` is called now or in a later call."""
        waiting = self._waiting[pixels.shape]
        waiting.append((pixels, done))
        if len(waiting) == self._rows[pixels.ndim]:
            self._run(pixels.shape)

    def flush(self) -> None:
        """Encodes what still waits."""
        for shape in list(self._waiting):
            self._run(shape)

    def _run(self, shape: tuple[int, ...]) -> None:
        waiting = self._waiting.pop(shape)
        codes = self._encoder.encode(np.stack([p for p, _ in waiting]), self._rows[len(shape)])
        for row, (_, done) in zip(codes, waiting, strict=True):
            done(row)
