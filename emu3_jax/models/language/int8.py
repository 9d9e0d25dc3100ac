"""Kernels of layers that are not trained as int8 with a float32 scale per output channel.

w is stored as q s with s = max |w| / 127 over the inputs of a channel and q = round(w / s), so that
|w - q s| <= s / 2, and a channel of zeros is exact. A layer computes (x q) s: whole numbers up to
127 are exact in bfloat16, sums are float32 and are rounded once. The kernels of all layers never
exist as floats. The model's code has no part in it: `reading` intercepts the calls of its `Linear`
layers, as `lora.adapting` does.

With model.remat=dots the sums are what is stored for the backward pass, four bytes each.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from emu3_jax.models.language.layers import Linear, precision

KERNEL, SCALE = "kernel", "kernel_scale"
LARGEST = 127  # of int8, but for -128, which has no positive twin

Path = tuple[str, ...]


def linear_layers(init: Callable[[], Any]) -> dict[Path, tuple[int, ...]]:
    """Returns path → axes that are summed over, counted from the last, of the stack's layers.

    Args:
      init: initialises a model; it is traced, not run.
    """
    found = {}

    def note(function, arguments, keywords, context):
        layer = context.module
        if isinstance(layer, Linear) and layer.path[0].startswith("layers"):
            first = -len(layer.shape)
            found[layer.path] = tuple(range(first, first + layer.num_in))
        return function(*arguments, **keywords)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda: init())  # of a function that was traced before, the trace is kept
    return found


def zeros(params: dict, layers: Mapping[Path, tuple[int, ...]]) -> dict:
    """Returns the weights with int8 kernels and their scales, all zero, in place of float kernels.

    Scales have the kernel's shape with 1 in place of the axes that are summed over.

    Args:
      params: boxed with logical axis names.
      layers: the result of `linear_layers`.
    """
    flat = flax.traverse_util.flatten_dict(params)
    for path, axes in layers.items():
        kernel = flat[*path, KERNEL]
        inputs = [axis % len(kernel.names) for axis in axes]
        sizes = [1 if i in inputs else size for i, size in enumerate(kernel.value.shape)]
        # A gather of a few kilobytes in every layer costs more than it saves.
        names = [
            None if i in inputs else "norm" if name == "embed" else name
            for i, name in enumerate(kernel.names)
        ]
        stored = jnp.zeros(kernel.value.shape, jnp.int8)
        flat[*path, KERNEL] = kernel.replace_boxed(stored)
        flat[*path, SCALE] = nn.LogicallyPartitioned(jnp.zeros(sizes, jnp.float32), tuple(names))
    return flax.traverse_util.unflatten_dict(flat)


def abstract(init: Callable[[], Any]) -> dict:
    """Shapes and dtypes of a model's boxed weights with int8 kernels (`zeros`).

    Args:
      init: initialises the model; it is traced, not run.
    """
    layers = linear_layers(init)
    return jax.eval_shape(lambda: zeros(init()["params"], layers))


def is_stored_in(params: dict) -> bool:
    """Whether any kernel of the weights is int8 already."""
    return any(path[-1] == SCALE for path in flax.traverse_util.flatten_dict(params))


def as_floats(flat: Mapping[Path, jax.Array], dtype: str) -> dict[Path, Any]:
    """Returns the flat weights with a ShapeDtypeStruct of `dtype` in place of each int8 kernel."""
    return {
        path: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)
        if (*path[:-1], SCALE) in flat and path[-1] == KERNEL
        else x
        for path, x in flat.items()
        if path[-1] != SCALE
    }


def quantized(kernel: jax.Array, scale_like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (int8 kernel, its scales), laid out as the kernel and as `scale_like` are.

    Args:
      kernel: of one layer or a stack.
      scale_like: an array of the shape and sharding that the scales have.
    """
    axes = tuple(i for i, size in enumerate(scale_like.shape) if size == 1)
    return _rounding(axes, kernel.sharding, scale_like.sharding)(kernel)


@functools.cache
def _rounding(axes: tuple[int, ...], kernel_layout, scale_layout):
    """The function, compiled once for kernels of one kind."""
    return jax.jit(
        functools.partial(rounded, axes=axes), out_shardings=(kernel_layout, scale_layout)
    )


def rounded(kernel: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Returns (int8 numbers, float32 scales) of a kernel that is summed over `axes`."""
    floats = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(floats), axis=axes, keepdims=True) / LARGEST
    steps = jnp.round(floats / jnp.where(scale == 0, 1, scale))
    return jnp.clip(steps, -LARGEST, LARGEST).astype(jnp.int8), scale


def dequantized(params: dict, dtype: str) -> dict:
    """Returns the weights with kernels q s in `dtype`, each laid out as it was stored."""
    flat = flax.traverse_util.flatten_dict(params)
    for *module, _ in [path for path in flat if path[-1] == SCALE]:
        stored, scale = flat[*module, KERNEL], flat.pop((*module, SCALE))
        flat[*module, KERNEL] = _multiplying(dtype, stored.sharding)(stored, scale)
    return flax.traverse_util.unflatten_dict(flat)


@functools.cache
def _multiplying(dtype: str, layout):
    return jax.jit(lambda q, scale: (q * scale).astype(dtype), out_shardings=layout)


@contextmanager
def reading() -> Iterator[None]:
    """Within the block, `Linear` layers whose kernels are int8 use their scales.

    It does what the layer does, so of several interceptors it must be the last that is entered.
    """

    def call(function, arguments, keywords, context):
        layer = context.module
        if not isinstance(layer, Linear) or not layer.has_variable("params", SCALE):
            return function(*arguments, **keywords)
        (x,) = arguments
        stored, scale = (layer.get_variable("params", name) for name in (KERNEL, SCALE))
        out_dtype = jnp.dtype(layer.out_dtype or layer.dtype)
        scale = scale.reshape(scale.shape[layer.num_in :])
        return _product(x, stored, scale, layer.num_in, jnp.dtype(layer.dtype), out_dtype)

    with nn.intercept_methods(call):
        yield


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _product(x, stored, scale, num_in: int, dtype, out_dtype):
    """(x q) s. Only x has a gradient, computed from numbers of `dtype` as well."""
    last = tuple(range(x.ndim - num_in, x.ndim))
    sums = _dot(x.astype(dtype), stored.astype(dtype), last, tuple(range(num_in)), jnp.float32)
    return (sums * scale).astype(out_dtype)


def _forward(x, stored, scale, num_in, dtype, out_dtype):
    like = jnp.zeros((0,), x.dtype)  # tells the gradient's type
    return _product(x, stored, scale, num_in, dtype, out_dtype), (stored, scale, like)


def _backward(num_in, dtype, out_dtype, kept, gradient):
    del out_dtype
    stored, scale, like = kept
    scaled = (gradient * scale).astype(dtype)
    outs = scale.ndim
    last = tuple(range(gradient.ndim - outs, gradient.ndim))
    of_x = _dot(scaled, stored.astype(dtype), last, tuple(range(num_in, num_in + outs)), like.dtype)
    return of_x, None, None


_product.defvjp(_forward, _backward)


def _dot(x, kernel, of_x: tuple[int, ...], of_kernel: tuple[int, ...], dtype):
    """The product, summed over the given axes of each, in `dtype`."""
    options = {"precision": precision(x.dtype), "preferred_element_type": dtype}
    return jax.lax.dot_general(x, kernel, ((of_x, of_kernel), ((), ())), **options)
