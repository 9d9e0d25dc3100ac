"""PatchGAN discriminators of the vision tokenizer: one for frames, one for clips.

Emu3's own is not published (the paper, section 2.2, has only "GAN loss"). That of frames is
pix2pix's (Isola et al. 2017, appendix 6.1.2), as MoVQGAN and VQGAN use it; that of clips is the
same with kernels three frames long. Every logit judges one patch, not the whole image.

The norm is GroupNorm, where pix2pix has BatchNorm. No statistics run over the batch: the logits of
an image do not depend on the other images, real and reconstructed images need not share a batch,
any mesh gives the same result, and the gradient penalty of an image is its own.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from emu3_jax import sharding
from emu3_jax.models.language.layers import INIT_STDDEV
from emu3_jax.models.vision.convolution import conv_2d, kernel_axes
from emu3_jax.models.vision.initializers import ZEROS
from emu3_jax.models.vision.norms import GroupNorm

_DTYPES = ("float32", "bfloat16", "float16")

KERNEL = 4
CLIP_FRAMES = 3
"""Frames of a kernel of the clips' discriminator. Odd, so that stride 1 keeps the number of frames
and a single frame is no special case."""
SLOPE = 0.2
WIDEST = 8
"""pix2pix: the width stops doubling at eight times the first layer's."""


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of a discriminator; the defaults are pix2pix's 70x70 PatchGAN.

    Attributes:
      width: channels of the first layer; they double in each later one, up to eight times.
      layers: convolutions that halve height and width; MoVQGAN's recipe has 2. The patch of a logit
        has 34, 70 or 142 pixels at 2, 3 or 4 layers.
      norm_groups: groups of every GroupNorm; must divide 2 x width, the narrowest layer with one.
      dtype: compute type; logits are float32.
      param_dtype: type in which the parameters are created.
    """

    width: int = 64
    layers: int = 3
    norm_groups: int = 32
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        for name in ("width", "layers", "norm_groups"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"discriminator {name} must be a whole number from 1, found {value!r}."
                )
        if 2 * self.width % self.norm_groups:
            raise ValueError(
                f"discriminator norm_groups = {self.norm_groups} must divide 2 x width = "
                f"{2 * self.width}, the channels of the narrowest layer with a norm."
            )
        for name in ("dtype", "param_dtype"):
            if getattr(self, name) not in _DTYPES:
                raise ValueError(
                    f"discriminator {name} must be one of {', '.join(_DTYPES)}, "
                    f"found {getattr(self, name)!r}."
                )

    @property
    def smallest_side(self) -> int:
        """Least height and width in pixels: three rows must be left after the last halving."""
        return 3 * 2**self.layers

    def features(self, layer: int) -> int:
        """Channels of the hidden layer of this number, from 0 to `layers`."""
        return self.width * min(2**layer, WIDEST)


def frames_side_by_side(x_BTHWC: jax.Array, kernel, time_stride: int):
    """A 3-D convolution as a 2-D one: the frames of a step become channels of one frame.

    float [B, T, H, W, I] and kernel [kt, kh, kw, I, O], kt odd, with (kt - 1) / 2 zero frames at
    both ends -> [B x ceil(T / time_stride), H, W, kt x I] and [kh, kw, kt x I, O]. The sums are the
    same; the gradient of a 3-D convolution takes several times as long on a CPU.
    """
    kt, kh, kw, inputs, outputs = kernel.shape
    B, T, H, W, _ = x_BTHWC.shape
    steps = -(-T // time_stride)
    ends = (kt // 2, kt // 2)
    padded = jnp.pad(x_BTHWC, ((0, 0), ends, (0, 0), (0, 0), (0, 0)))
    last = (steps - 1) * time_stride + 1
    seen = [padded[:, i : i + last : time_stride] for i in range(kt)]
    stacked = jnp.concatenate(seen, axis=-1).reshape(B * steps, H, W, kt * inputs)
    return stacked, kernel.transpose(1, 2, 0, 3, 4).reshape(kh, kw, kt * inputs, outputs)


class PatchConv(nn.Module):
    """4x4 convolution of frames, 3x4x4 of clips, one zero around; a bias if no norm follows.

    Attributes:
      features: channels out.
      config: has the compute and parameter types.
      stride: along height and width.
      time_stride: along time, for clips.
      bias: whether there is one.
      narrow: the input is pixels or the output logits: the kernel is replicated.
    """

    features: int
    config: DiscriminatorConfig
    stride: int = 1
    time_stride: int = 1
    bias: bool = False
    narrow: bool = False

    @nn.compact
    def __call__(self, x):
        """float [B, H, W, I] or [B, T, H, W, I] -> `config.dtype`, the same rank."""
        in_time = x.ndim == 5
        param_dtype, dtype = jnp.dtype(self.config.param_dtype), jnp.dtype(self.config.dtype)
        sides = (CLIP_FRAMES, KERNEL, KERNEL) if in_time else (KERNEL, KERNEL)
        names = kernel_axes(len(sides) + 2, self.narrow)
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(nn.initializers.normal(INIT_STDDEV), names),
            (*sides, x.shape[-1], self.features),
            param_dtype,
        )
        x, kernel = x.astype(dtype), sharding.gathered(kernel.astype(dtype))
        clips = x.shape[0]
        if in_time:
            x, kernel = frames_side_by_side(x, kernel, self.time_stride)
        y = conv_2d(x, kernel, self.stride, ((1, 1), (1, 1)))
        if self.bias:
            zeros = nn.with_logical_partitioning(ZEROS, ("norm",))
            y = y + self.param("bias", zeros, (self.features,), param_dtype).astype(dtype)
        return y.reshape(clips, -1, *y.shape[1:]) if in_time else y


class PatchDiscriminator(nn.Module):
    """Logits of patches of images or of clips; the rank of the array at `init` decides which.

    A clip may have any number of frames, from one: time is halved with height and width while at
    least four frames are left, and the weights do not depend on the length. The norms take
    statistics over a whole image, or over all frames of a clip.
    """

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Judges images or clips.

        Args:
          pixels: float [B, H, W, 3] or [B, T, H, W, 3] in [-1, 1].

        Returns:
          float32 logits [B, h, w] or [B, t, h, w], large where a patch looks real;
          h = H // 2**layers - 2, w alike, t = T halved (rounded up) by each layer that has
          at least four frames.

        Raises:
          ValueError: not three channels, another rank, or frames below `config.smallest_side`.
        """
        _check_pixels(pixels.shape, self.config)
        config, in_time = self.config, pixels.ndim == 5
        x = pixels
        for layer in range(config.layers + 1):
            strided = layer < config.layers
            x = PatchConv(
                config.features(layer),
                config,
                stride=2 if strided else 1,
                time_stride=2 if strided and in_time and x.shape[1] >= 4 else 1,
                bias=layer == 0,
                narrow=layer == 0,
                name=f"conv_{layer}",
            )(x)
            if layer > 0:
                x = self._normalised(x, f"norm_{layer}")
            x = nn.leaky_relu(x, SLOPE)
        logits = PatchConv(1, config, bias=True, narrow=True, name="logits")(x)
        return logits[..., 0].astype(jnp.float32)

    def _normalised(self, x, name: str):
        """GroupNorm over a whole image or clip; the frames of a clip are stacked vertically."""
        frames = x.reshape(x.shape[0], -1, *x.shape[-2:])
        return GroupNorm(self.config, name=name)(frames).reshape(x.shape)


def _check_pixels(shape, config: DiscriminatorConfig) -> None:
    if len(shape) not in (4, 5) or shape[-1] != 3:
        raise ValueError(
            "the discriminator reads images [B, H, W, 3] or clips [B, T, H, W, 3], "
            f"found an array of shape {list(shape)}."
        )
    if min(shape[-3:-1]) < config.smallest_side:
        raise ValueError(
            f"images of {shape[-3]}x{shape[-2]} pixels are too small for a discriminator with "
            f"layers = {config.layers}: it needs at least {config.smallest_side}x"
            f"{config.smallest_side}."
        )
