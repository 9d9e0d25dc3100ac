"""The encoder of a vision tokenizer as a program for ahead-of-time lowering."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from emu3_jax import sharding
from emu3_jax.data.codec.programs import jitted
from emu3_jax.data.codec.vision_encoder import mesh_of
from emu3_jax.data.pixels.pixel_batches import PixelGroup
from emu3_jax.train import model_flops
from emu3_jax.train.program import Program


class TokenizeProgram(Program):
    """Encodes pixels to codes, as `emu3_jax.tokenize` does.

    The batch is one group of the config's data: the first of clips, or else the first of stills.
    """

    def mesh(self, devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
        """Returns a mesh of all devices that divides the batch."""
        return mesh_of(devices)

    def lower(self, devices: Sequence[jax.Device]) -> jax.stages.Lowered:
        """Lowers the encoder with replicated weights."""
        mesh = self.mesh(devices)
        pixels = self.task.abstract_batch(mesh)[self._group.name]
        everywhere = sharding.replicated(mesh)
        variables = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
            self._variables(),
        )
        sizes = self._sizes(sharding=NamedSharding(mesh, sharding.partition_spec("batch")))
        with jax.set_mesh(mesh):
            return jitted(self.task.model, "encode").lower(variables, pixels, sizes)

    def model_flops(self) -> float:
        """Returns the model FLOPs of one batch over all devices."""
        pixels = jax.ShapeDtypeStruct(self._group.shape, jnp.float32)
        encode = jitted(self.task.model, "encode")
        return model_flops.of_call(encode, self._variables(), pixels, self._sizes())

    @property
    def _group(self) -> PixelGroup:
        groups = self.task.config.data.active
        return next((group for group in groups if group.kind != "stills"), groups[0])

    def _sizes(self, **options) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self._group.shape[0], 2), jnp.int32, **options)

    def _variables(self):
        return self.task.model_parts(nn.unbox(jax.eval_shape(self.task.init, jax.random.key(0))))
