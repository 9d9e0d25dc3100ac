"""A vision tokenizer's encoder, as a program to compile."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from emu3_jax import sharding
from emu3_jax.data.codec.vision_encoder import encode_batch, mesh_of
from emu3_jax.data.pixels.pixel_batches import PixelGroup
from emu3_jax.train import model_flops
from emu3_jax.train.program import Program


class TokenizeProgram(Program):
    """Pixels to codes as `emu3_jax.tokenize` runs it: one batch of the config's clips, or of its
    stills where it has no clips."""

    def mesh(self, devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
        """All devices, each with its share of the batch."""
        return mesh_of(devices)

    def lower(self, devices: Sequence[jax.Device]) -> jax.stages.Lowered:
        """The weights are whole on every device."""
        mesh = self.mesh(devices)
        pixels = self.task.abstract_batch(mesh)[self._group.name]
        everywhere = sharding.replicated(mesh)
        variables = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
            self._variables(),
        )
        with jax.set_mesh(mesh):
            return encode_batch.lower(self.task.model, variables, pixels)

    def model_flops(self) -> float:
        """Of one batch over all devices."""
        pixels = jax.ShapeDtypeStruct(self._group.shape, jnp.float32)
        encode = functools.partial(encode_batch, self.task.model)
        return model_flops.of_call(encode, self._variables(), pixels)

    @property
    def _group(self) -> PixelGroup:
        groups = self.task.config.data.active
        return next((group for group in groups if group.kind != "stills"), groups[0])

    def _variables(self):
        return self.task.model_parts(nn.unbox(jax.eval_shape(self.task.init, jax.random.key(0))))
