"""Convolutions and resampling of the vision tokenizer, channels last, torch's padding.

Kernels that are wide on both sides hold nearly all weights. They are sharded by output channels
(logical axis "conv_out"). Kernels from or to latents (4 channels) and pixels (3) are small, and no
mesh would divide them.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from emu3_jax import sharding
from emu3_jax.models import cpu
from emu3_jax.models.language.layers import precision
from emu3_jax.models.vision import strips, winograd
from emu3_jax.models.vision.canvas import Canvas, cleared
from emu3_jax.models.vision.initializers import FAN_IN, ZEROS, identity_in_time


def conv_2d(x, kernel, stride: int, padding):
    """float [B, H, W, I] and [kh, kw, I, O] -> [B, H', W', O]."""
    if kernel.shape[:2] == (1, 1) and stride == 1:
        # A matmul: with its gradient, 0.5 to 0.8 times the time of a convolution on a CPU.
        return jnp.einsum("bhwi,io->bhwo", x, kernel[0, 0], precision=precision(x.dtype))
    if cpu.winograd_pays(x, kernel, stride):
        return conv_3x3(x, kernel, padding)
    return direct(x, kernel, stride, padding)


def direct(x, kernel, stride: int, padding):
    """`conv_2d` by the compiler's convolution, for all sizes."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision(x.dtype),
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def conv_3x3(x, kernel, padding):
    """`conv_2d` of 3x3 kernels with fewer products; its gradient is that of `direct`."""
    return winograd.conv_3x3(x, kernel, padding)


@conv_3x3.defjvp
def _derivative(padding, primals, tangents):
    _, derivative = jax.jvp(lambda x, kernel: direct(x, kernel, 1, padding), primals, tangents)
    return conv_3x3(*primals, padding), derivative


def conv_2d_of_doubled(x, kernel):
    """The 3x3 convolution of frames doubled by nearest neighbour, [kh, kw, I, O] = [3, 3, I, O].

    float [F, H, W, I] -> [F, 2H, 2W, O], without enlarging x: of the three rows (columns) of a
    result, two are the same row of x, so their weights are added. 16 products instead of 36.
    """
    F, H, W, _ = x.shape
    outputs = [
        conv_2d(x, _folded(_folded(kernel, i, 0), j, 1), 1, ((1 - i, i), (1 - j, j)))
        for i in range(2)
        for j in range(2)
    ]
    y = jnp.stack(outputs, axis=-2).reshape(F, H, W, 2, 2, -1)
    return y.swapaxes(2, 3).reshape(F, 2 * H, 2 * W, -1)


def _folded(kernel, parity: int, axis: int):
    """Three weights along an axis as two, for results at even (0) or odd (1) positions."""
    a, b, c = jnp.split(kernel, 3, axis)
    return jnp.concatenate([a + b, c] if parity else [a, b + c], axis)


def causal_conv_3d(x, kernel, time_stride: int):
    """float [B, T, H, W, I] and [kt, kh, kw, I, O] -> [B, T', H, W, O].

    T' = (T + 2 - kt) // time_stride + 1: two zero frames before and none after, for every kt, as in
    the released code. Height and width keep their size (kh and kw odd). The frames of a step become
    channels of one 2-D convolution. The sums are the same, and the gradient of a 3-D convolution
    takes 5 to 30 times as long on a CPU.
    """
    kt, kh, kw, inputs, outputs = kernel.shape
    B, T, H, W, _ = x.shape
    steps = (T + 2 - kt) // time_stride + 1
    x = jnp.pad(x, ((0, 0), (2, 0), (0, 0), (0, 0), (0, 0)))
    last = (steps - 1) * time_stride + 1
    frames = [x[:, i : i + last : time_stride] for i in range(kt)]
    stacked = jnp.concatenate(frames, axis=-1).reshape(B * steps, H, W, kt * inputs)
    flat_kernel = kernel.transpose(1, 2, 0, 3, 4).reshape(kh, kw, kt * inputs, outputs)
    y = conv_2d(stacked, flat_kernel, 1, ((kh // 2,) * 2, (kw // 2,) * 2))
    return y.reshape(B, steps, H, W, outputs)


def kernel_axes(rank: int, narrow: bool) -> tuple[str | None, ...]:
    """Logical axes of a kernel [..., I, O] of this rank, sharded unless it is narrow."""
    return (None,) * (rank - 1) + (None if narrow else "conv_out",)


class Conv(nn.Module):
    """A convolution with bias: 2-D over [B, H, W, C], or causal 3-D over [B, T, H, W, C].

    Attributes:
      features: channels out.
      kernel: (height, width), or (time, height, width) for the causal 3-D one.
      stride: along height and width in 2-D, along time in 3-D.
      padding: zeros around the frame in 2-D ((top, bottom), (left, right)); not used in 3-D.
      narrow: input or output is latents or pixels: the kernel is replicated.
      doubled: the 2-D input is first doubled in height and width, by nearest neighbour.
      kernel_init, bias_init: initialisers.
    """

    features: int
    kernel: tuple[int, ...]
    config: object
    stride: int = 1
    padding: tuple = ((1, 1), (1, 1))
    narrow: bool = False
    doubled: bool = False
    kernel_init: Callable = FAN_IN
    bias_init: Callable = ZEROS

    @nn.compact
    def __call__(self, x, canvas: Canvas | None = None):
        """float [B, ..., C_in] or Rows -> `config.dtype` [B, ..., features], Rows for Rows."""
        if max(self.kernel[-2:]) > 1:
            x = cleared(x, canvas)
        channels = x.shape[-1]
        param_dtype, dtype = jnp.dtype(self.config.param_dtype), jnp.dtype(self.config.dtype)
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(
                self.kernel_init, kernel_axes(len(self.kernel) + 2, self.narrow)
            ),
            (*self.kernel, channels, self.features),
            param_dtype,
        )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(self.bias_init, ("norm",)),
            (self.features,),
            param_dtype,
        )
        kernel, bias = sharding.gathered(kernel.astype(dtype)), bias.astype(dtype)

        def convolve(x, padding):
            x = x.astype(dtype)
            if len(self.kernel) == 3:
                y = causal_conv_3d(x, kernel, self.stride)
            elif self.doubled:
                y = conv_2d_of_doubled(x, kernel)
            else:
                y = conv_2d(x, kernel, self.stride, padding)
            return y + bias

        if not isinstance(x, strips.Rows):
            return convolve(x, self.padding)
        (halo, _), sides = self.padding
        in_strip = lambda rows: convolve(rows, ((0, 0), sides))  # noqa: E731
        return (
            x.doubled(in_strip, self.features)
            if self.doubled
            else x.around(halo, in_strip, self.features)
        )


def conv3x3(features: int, config, name: str | None = None, **options) -> Conv:
    """A 3x3 convolution with one zero on every side."""
    return Conv(features, (3, 3), config, name=name, **options)


def conv1x1(features: int, config, name: str | None = None, **options) -> Conv:
    """A 1x1 convolution: one matrix over the channels of every position."""
    return Conv(features, (1, 1), config, padding=((0, 0), (0, 0)), name=name, **options)


class CausalConv(nn.Module):
    """Causal 3-D convolution among latents, see `causal_conv_3d`.

    Attributes:
      features: channels out.
      kernel: (time, height, width).
      time_stride: stride along time.
      kernel_init: initialiser; the identity suits a layer without an activation after it.
    """

    features: int
    config: object
    kernel: tuple[int, int, int] = (3, 1, 1)
    time_stride: int = 1
    kernel_init: Callable = identity_in_time

    @nn.compact
    def __call__(self, x, canvas: Canvas | None = None):
        """float [B, T, H, W, C] -> [B, (T + 2 - kernel[0]) // time_stride + 1, H, W, features]."""
        return Conv(
            self.features,
            self.kernel,
            self.config,
            self.time_stride,
            narrow=True,
            kernel_init=self.kernel_init,
            name="conv",
        )(x, canvas)


def repeat_nearest(x, factors: tuple[int, ...]):
    """Nearest-neighbour enlargement: axis 1 + i of [B, ..., C] is repeated `factors[i]` times."""
    for axis, factor in enumerate(factors, start=1):
        if factor > 1:
            x = jnp.repeat(x, factor, axis=axis)
    return x


class Downsample(nn.Module):
    """Halves height and width: 3x3, stride 2, one zero on the right and at the bottom only."""

    config: object

    @nn.compact
    def __call__(self, x, canvas: Canvas | None = None):
        """float [F, H, W, C] -> [F, H/2, W/2, C]."""
        padding = ((0, 1), (0, 1))
        return Conv(x.shape[-1], (3, 3), self.config, 2, padding, name="conv")(x, canvas)


class Upsample(nn.Module):
    """Doubles height and width: nearest neighbour, then 3x3."""

    config: object

    @nn.compact
    def __call__(self, x, canvas: Canvas | None = None):
        """float [F, H, W, C] -> [F, 2H, 2W, C], as Rows if large."""
        F, H, W, C = x.shape
        conv = conv3x3(C, self.config, doubled=True, name="conv")
        return conv(strips.of_array(x) if strips.is_large((F, 2 * H, 2 * W, C)) else x, canvas)
