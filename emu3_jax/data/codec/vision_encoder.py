"""The vision tokenizer of a dataset: codes of its images and clips, on all local devices."""

import jax
from jax.sharding import Mesh

from emu3_jax import sharding
from emu3_jax.data.codec.canvases import Batcher
from emu3_jax.data.codec.fingerprint import vision_fingerprint
from emu3_jax.data.codec.programs import Encoding


def mesh_of(devices) -> Mesh:
    """The mesh on which datasets are encoded: replicated weights, the batch split over devices."""
    return sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=1), devices)


class VisionEncoder:
    """Encodes batches, split over devices (all local ones).

    `spatial_factor`, `temporal_factor`, `codebook_size` and `fingerprint` are the tokenizer's.
    """

    def __init__(self, module, variables, devices=None):
        config = module.config
        self.spatial_factor = config.spatial_factor
        self.temporal_factor = config.temporal_downsample_factor
        self.codebook_size = config.codebook_size
        self.fingerprint = vision_fingerprint(config, variables)
        mesh = mesh_of(devices or jax.local_devices())
        variables = jax.device_put(variables, sharding.replicated(mesh))
        self._encoding = Encoding((module, variables), mesh)

    def batcher(self, image_rows: int, clip_rows: int) -> Batcher:
        """A Batcher from uint8 pixels of whole tokens to int32 codes."""
        return self._encoding.batcher(image_rows, clip_rows)
