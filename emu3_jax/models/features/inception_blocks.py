"""The parts of 2-D and 3-D Inception networks, inference only.

A network is a dict of units, name → (kernel [..., I, O], bias [O]): a convolution with its
BatchNorm folded in. A block is a tuple of branches, each a line of steps; the branches' outputs are
concatenated. A step is the name of a unit, `max` or `avg` (windows of 3, same size). `/2` after it
halves the sides, without padding. `a|b` concatenates the outputs of two units on one input.
"""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Units = Mapping[str, tuple[jax.Array, jax.Array]]
# Of every BatchNorm in both reference networks (torch's default is 1e-5).
BATCH_NORM_EPSILON = 1e-3


def convolution(x: jax.Array, unit: tuple, stride: int = 1, padding: str = "SAME") -> jax.Array:
    """float [B, *sides, I] → [B, *sides', O]: convolution and bias; sides of any number."""
    kernel, bias = unit
    sides = x.ndim - 2
    letters = "DHW"[3 - sides :]
    layout = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    # Full precision: feature distances are measurements, and TF32 would change them.
    return bias + lax.conv_general_dilated(
        x, kernel, (stride,) * sides, padding, dimension_numbers=layout, precision="highest"
    )


def max_pool(x: jax.Array, window: tuple, strides: tuple, padding: str = "SAME") -> jax.Array:
    """Largest value in each window; float [B, *sides, C]."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), padding)


def mean_pool(x: jax.Array, window: tuple, padding: str = "SAME") -> jax.Array:
    """Mean of each window at stride 1 over what lies inside the image; float [B, *sides, C]."""
    window, ones = (1, *window, 1), (1,) * x.ndim
    total = lax.reduce_window(x, 0.0, lax.add, window, ones, padding)
    inside = jnp.ones((1, *x.shape[1:-1], 1), x.dtype)
    return total / lax.reduce_window(inside, 0.0, lax.add, window, ones, padding)


def block(units: Units, prefix: str, branches: tuple[str, ...], x: jax.Array) -> jax.Array:
    """Runs the branches of one block on x, float [B, *sides, C], and concatenates channels."""
    return jnp.concatenate([_branch(units, prefix, steps, x) for steps in branches], axis=-1)


def unit_names(prefix: str, branches: tuple[str, ...]) -> list[str]:
    """Names of the units of a block, in the order of its branches."""
    steps = (part for branch in branches for step in branch.split() for part in step.split("|"))
    names = (step.removesuffix("/2") for step in steps)
    return [prefix + name for name in names if name not in ("max", "avg")]


def _branch(units: Units, prefix: str, steps: str, x: jax.Array) -> jax.Array:
    for step in steps.split():
        if "|" in step:
            x = block(units, prefix, tuple(step.split("|")), x)
            continue
        name, halves = step.removesuffix("/2"), step.endswith("/2")
        stride, padding = (2, "VALID") if halves else (1, "SAME")
        sides = x.ndim - 2
        if name == "max":
            x = max_pool(x, (3,) * sides, (stride,) * sides, padding)
        elif name == "avg":
            x = mean_pool(x, (3,) * sides)
        else:
            x = jax.nn.relu(convolution(x, units[prefix + name], stride, padding))
    return x


def units_of_torch(
    tensors: Mapping[str, np.ndarray], names: Iterable[str], conv: str, norm: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Folds torch's convolutions and BatchNorms into units.

    Args:
      tensors: a state dict; kernels are [O, I, *sides].
      names: of the units, each a prefix of its arrays.
      conv, norm: names after the prefix, such as "conv" and "bn".

    Returns:
      name → (float32 [*sides, I, O], float32 [O]).

    Raises:
      ValueError: names the first missing array, or arrays whose widths differ.
    """
    units = {}
    for name in names:
        keys = [f"{name}.{conv}.weight"]
        keys += [f"{name}.{norm}.{k}" for k in ("weight", "bias", "running_mean", "running_var")]
        if lacking := [key for key in keys if key not in tensors]:
            raise ValueError(f"{lacking[0]} is missing")
        kernel, scale, shift, mean, variance = (np.asarray(tensors[k], np.float64) for k in keys)
        if {a.shape for a in (scale, shift, mean, variance)} != {kernel.shape[:1]}:
            raise ValueError(f"{name}.{norm} does not have the width of {keys[0]}")
        factor = scale / np.sqrt(variance + BATCH_NORM_EPSILON)
        kernel = np.moveaxis(kernel, (0, 1), (-1, -2)) * factor
        units[name] = (kernel.astype(np.float32), (shift - mean * factor).astype(np.float32))
    return units
