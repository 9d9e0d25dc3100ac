"""The three layers that own weights (matmul, embedding table, root-mean-square norm) and dropout.

Each weight is declared once, with its logical axes: its shape, initial values and layout over
the mesh follow from that declaration. Weights are N(0, 0.02) (released config.json,
`initializer_range`). There are no biases.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from emu3_jax.models import cpu
from emu3_jax.models.language.lookup import lookup

INIT_STDDEV = 0.02


def precision(dtype) -> str | None:
    """The `precision` of matmuls and convolutions over inputs of this type.

    By default GPUs and TPUs round float32 inputs to TF32 or bfloat16, which changes codes, pixels
    and logits. Here float32 means float32. Smaller types need no more precision.
    """
    return "highest" if jnp.dtype(dtype) == jnp.float32 else None


def weight_init(*logical: str):
    """N(0, 0.02) with logical axis names."""
    return nn.with_logical_partitioning(nn.initializers.normal(INIT_STDDEV), logical)


def product(x: jax.Array, kernel: jax.Array, num_in: int, dtype, out_dtype) -> jax.Array:
    """The last `num_in` dimensions of x times the first ones of the kernel; see `Linear`."""
    multiply = _narrow_left if cpu.narrow_left_pays(dtype) else _product
    return multiply(x.astype(dtype), kernel.astype(dtype), num_in, jnp.dtype(out_dtype))


def _product(x, kernel, num_in: int, out_dtype):
    """The last `num_in` dimensions of x times the first of the kernel."""
    dimensions = (tuple(range(x.ndim - num_in, x.ndim)), tuple(range(num_in)))
    return _sum_over(dimensions, x, kernel, out_dtype)


def _sum_over(dimensions, a, b, out_dtype):
    exact = precision(a.dtype)
    return jax.lax.dot_general(a, b, (dimensions, ((), ())), exact, out_dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _narrow_left(x, kernel, num_in: int, out_dtype):
    """`_product`, with a gradient of the kernel that has x on the left; see cpu.py."""
    return _product(x, kernel, num_in, out_dtype)


def _narrow_left_forward(x, kernel, num_in, out_dtype):
    return _product(x, kernel, num_in, out_dtype), (x, kernel)


def _narrow_left_backward(num_in, out_dtype, residuals, dy):
    del out_dtype
    x, kernel = residuals
    rows = tuple(range(x.ndim - num_in))
    of_y = (tuple(range(len(rows), dy.ndim)), tuple(range(num_in, kernel.ndim)))
    return _sum_over(of_y, dy, kernel, x.dtype), _sum_over((rows, rows), x, dy, kernel.dtype)


_narrow_left.defvjp(_narrow_left_forward, _narrow_left_backward)


class Linear(nn.Module):
    """Matmul of the last dimensions of x with a kernel of the given shape; no bias.

    Attributes:
      shape: of the kernel: dimensions in, then dimensions out.
      logical: its logical axes.
      dtype: type to which inputs and kernel are rounded.
      param_dtype: type of the stored kernel.
      num_in: number of dimensions in, which are summed over.
      out_dtype: type of the result; None: `dtype`.
    """

    shape: tuple[int, ...]
    logical: tuple[str, ...]
    dtype: DTypeLike
    param_dtype: DTypeLike
    num_in: int = 1
    out_dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in dimensions] -> [..., out dimensions]."""
        kernel = self.param("kernel", weight_init(*self.logical), self.shape, self.param_dtype)
        return product(x, kernel, self.num_in, self.dtype, self.out_dtype or self.dtype)


class Embedding(nn.Module):
    """Table of one vector per token id; the rows above the true vocabulary are never read."""

    rows: int
    features: int
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, tokens_BS: jax.Array) -> jax.Array:
        """int [B, S] -> `dtype` [B, S, D]."""
        table_VD = self.param(
            "embedding",
            weight_init("vocab", "embed"),
            (self.rows, self.features),
            self.param_dtype,
        )
        return lookup(table_VD, tokens_BS, self.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) in float32, rounded to the type of x, then times the scale."""

    eps: float
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D], same dtype."""
        scale_init = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        scale_D = self.param("scale", scale_init, (x.shape[-1],), self.param_dtype)
        x_float = x.astype(jnp.float32)
        variance = jnp.mean(jnp.square(x_float), axis=-1, keepdims=True)
        normed = (x_float * jax.lax.rsqrt(variance + self.eps)).astype(x.dtype)
        return normed * scale_D.astype(x.dtype)


def dropped_bytes(rate: float) -> int:
    """How many of the 256 values of a random byte mean "dropped"; the least is one."""
    return min(max(round(256 * rate), 1), 255)


def dropout(x: jax.Array, rate: float, key: jax.Array, row_positions_S=None) -> jax.Array:
    """Zeroes elements of x with probability `rate` and scales the rest so that the mean stays.

    Random bits are the largest cost, so four elements share one 32-bit word. With eight bits per
    element the rate is accurate to 1/512: 0.1 becomes 26/256; the least is 1/256.

    With `row_positions_S`, int [S], the draw of a token of x [B, S, ...] depends on its position in
    the row, not on its index in x.
    """
    *rows, last = x.shape
    width = -(-last // 4)
    if row_positions_S is None:
        words = jax.random.bits(key, (*rows, width), jnp.uint32)
    else:
        shape = (rows[0], *rows[2:], width)
        keys_S = jax.vmap(jax.random.fold_in, (None, 0))(key, row_positions_S)
        words = jax.vmap(lambda k: jax.random.bits(k, shape, jnp.uint32), out_axes=1)(keys_S)
    numbers = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*rows, -1)[..., :last]
    dropped = dropped_bytes(rate)
    return jnp.where(numbers >= dropped, x * (256 / (256 - dropped)), jnp.zeros((), x.dtype))


class Dropout(nn.Module):
    """`dropout` with the module's random stream "dropout"; none if `deterministic`."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool, row_positions_S=None) -> jax.Array:
        """[...] -> the same shape and dtype; `row_positions_S` as in `dropout`."""
        if deterministic or self.rate == 0.0:
            return x
        return dropout(x, self.rate, self.make_rng("dropout"), row_positions_S)


def padded_rows(vocab_size: int, multiple: int) -> int:
    """Smallest multiple of `multiple` that holds `vocab_size` ids."""
    return math.ceil(vocab_size / multiple) * multiple
