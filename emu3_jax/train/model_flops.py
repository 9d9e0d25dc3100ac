"""Counts the model FLOPs of a function for MFU: those of its matmuls and convolutions.

By convention, a multiplication and the addition after it count as two, and norms, activations and
sums are not counted. The count is of the function as traced, before compilation.
"""

import math
from collections.abc import Callable

import jax
from jax.extend import core
from jax.sharding import AbstractMesh, AxisType

from emu3_jax.sharding import AXES


def of_call(function: Callable, *args) -> float:
    """Returns the FLOPs of one call.

    Args:
      function: traced for the current mesh, or for two devices if none is set: on a single CPU,
        convolutions use fewer products (models/cpu.py).
      args: arrays or ShapeDtypeStructs.

    Raises:
      ValueError: a product in a loop of unknown length.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        mesh = AbstractMesh((2, *(1 for _ in AXES[1:])), AXES, (AxisType.Auto,) * len(AXES))
    with jax.sharding.use_abstract_mesh(mesh):
        return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _of_jaxpr(jaxpr: core.Jaxpr) -> float:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _of_matmul(equation)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    inside = [_of_jaxpr(getattr(x, "jaxpr", x)) for x in core.jaxprs_in_params(params)]
    if name == "scan":
        return params["length"] * sum(inside)
    if name == "shard_map":
        return params["mesh"].size * sum(inside)
    if name == "cond":
        return max(inside)
    if name == "while" and any(inside):
        raise ValueError("FLOPs of a loop of unknown length cannot be counted")
    return sum(inside)


def _of_matmul(equation: core.JaxprEqn) -> float:
    (summed, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in summed)


def _of_convolution(equation: core.JaxprEqn) -> float:
    """Counts products with padding around the input, not with the zeros of lhs_dilation."""
    _, inputs, *window = equation.params["dimension_numbers"].rhs_spec
    kernel = equation.invars[1].aval.shape
    products = kernel[inputs] * math.prod(kernel[axis] for axis in window)
    products /= math.prod(equation.params["lhs_dilation"])
    return 2.0 * equation.outvars[0].aval.size * products
