"""Low-rank adapters (LoRA, arXiv:2106.09685) beside the linear layers of a frozen model.

y = x W + s (x A) B, with A [in, r], B [r, out] and s = alpha / r, or alpha / sqrt(r) with rank
stabilisation (arXiv:2312.03732). The model's code has no part in it: `adapting` intercepts the
calls of its `Linear` layers (flax.linen.intercept_methods), so adapters lie beside the kernels in
the tree of weights and are stacked, sharded and rematerialised as these are.

The other form, x (W + s A B), makes a gradient of W's size in every layer only to project it: 17%
more FLOPs for the same memory where layers are rematerialised (docs/how_to/post_training.md).

A loss uses the output matrix itself, by chunks, and not its layer. Weights outside the stack of
layers are therefore merged before use (`joined`).
"""

import dataclasses
import difflib
import fnmatch
import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from emu3_jax.models.language.layers import Linear, precision

A, B = "lora_a", "lora_b"
ROWS = "rows"
EMBEDDING, HEAD = ("embed", "embedding"), ("lm_head", "kernel")
BASES = ("", "int8")
ADAPTER_DTYPE = "float32"  # a small update is lost in the 8 bits of bfloat16


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which weights get adapters, and of what kind. All other weights are frozen.

    Attributes:
      rank: inner dimension r of every adapter.
      alpha: adapters are multiplied by alpha / rank.
      rslora: multiply them by alpha / sqrt(rank) instead, so that larger ranks learn as fast.
      targets: patterns of linear layers, as file names are matched: "attention/query" or
        "attention/*", "gate", "up", "down", "lm_head", or "*" for all.
      rows: two token ids, first and end: the vectors of the ids first to end - 1 are trained whole,
        in the embedding and in the output matrix, as adapters that are added to them; () for none.
        The visual ids of the released vocabulary are (151854, 184622).
      start: directory of an adapter in PEFT's files to begin from; "": B begins at zero.
      base: how the frozen kernels of the layers' linear layers are stored while adapters are
        trained: "int8", with a float32 scale per output channel, or "": as `model.param_dtype`
        states, like all other weights.
    """

    rank: int = 64
    alpha: float = 128.0
    rslora: bool = False
    targets: tuple[str, ...] = ("attention/*", "gate", "up", "down")
    rows: tuple[int, ...] = ()
    start: str = ""
    base: str = ""

    def __post_init__(self):
        if self.base not in BASES:
            near = difflib.get_close_matches(str(self.base), BASES[1:], n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(
                f"lora.base is {self.base!r}{hint}; expected 'int8', or '' for the type that "
                "model.param_dtype names"
            )
        if self.rank < 1:
            raise ValueError(f"lora.rank must be 1 or more, got {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"lora.alpha must be above zero, got {self.alpha}")
        if not self.targets and not self.rows:
            raise ValueError("lora.targets and lora.rows are both empty: nothing would be trained")
        if self.rows and not (len(self.rows) == 2 and 0 <= self.rows[0] < self.rows[1]):
            raise ValueError(f"lora.rows must be two ids, first < end, got {self.rows}")
        if self.rows and any(_matches("lm_head", pattern) for pattern in self.targets):
            raise ValueError(
                "lora.rows trains vectors of lm_head whole, which lora.targets names as well; "
                "leave one of them out"
            )

    @property
    def scale(self) -> float:
        """What the product of A and B is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def _matches(path: str, pattern: str) -> bool:
    """Whether a pattern names the layer or its last parts."""
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"*/{pattern}")


@contextmanager
def adapting(config: LoraConfig) -> Iterator[None]:
    """Within the block, `Linear` layers use the adapters that lie beside their kernels.

    When a model is initialised, the layers that `config.targets` name get adapters: A uniform
    within 1 / sqrt(in), B zero (as PEFT begins).
    """

    def call(function, arguments, keywords, context):
        layer, y = context.module, function(*arguments, **keywords)
        if not isinstance(layer, Linear) or context.method_name != "__call__":
            return y
        if layer.is_initializing():
            path = "/".join(layer.path)
            present = any(_matches(path, pattern) for pattern in config.targets)
        else:
            present = layer.has_variable("params", A)
        return y + config.scale * _low_rank(layer, *arguments, config.rank) if present else y

    with nn.intercept_methods(call):
        yield


def _low_rank(layer: Linear, x: jax.Array, rank: int) -> jax.Array:
    """(x A) B, in the compute type of the layer; the result has that of its output."""
    into, out = layer.shape[: layer.num_in], layer.shape[layer.num_in :]
    names_in, names_out = layer.logical[: layer.num_in], layer.logical[layer.num_in :]
    bound = 1 / math.sqrt(math.prod(into))

    def uniform(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    def weight(name, init, shape, logical):
        init = nn.with_logical_partitioning(init, logical)
        return layer.param(name, init, shape, jnp.dtype(ADAPTER_DTYPE)).astype(layer.dtype)

    a = weight(A, uniform, (*into, rank), (*names_in, "rank"))
    b = weight(B, nn.initializers.zeros, (rank, *out), ("rank", *names_out))
    options = {"precision": precision(layer.dtype)}
    h = jnp.tensordot(x.astype(layer.dtype), a, layer.num_in, **options)
    return jnp.tensordot(
        h, b, 1, **options, preferred_element_type=jnp.dtype(layer.out_dtype or layer.dtype)
    )


def split(params: dict) -> tuple[dict, dict]:
    """Returns (adapters, all other weights) of a tree made under `adapting`."""
    flat = flax.traverse_util.flatten_dict(params)
    adapters = {path: flat.pop(path) for path in list(flat) if path[-1] in (A, B)}
    return tuple(flax.traverse_util.unflatten_dict(part) for part in (adapters, flat))


def beside(one: dict, other: dict) -> dict:
    """Returns the leaves of two trees of weights as one; `other` wins where both have one."""
    flat = flax.traverse_util.flatten_dict(one) | flax.traverse_util.flatten_dict(other)
    return flax.traverse_util.unflatten_dict(flat)


def row_adapters(config: LoraConfig, hidden_size: int) -> dict:
    """Returns the adapters of `config.rows`, zeros, boxed; {} if there are none."""
    if not config.rows:
        return {}
    count = config.rows[1] - config.rows[0]

    def zeros(shape, logical):
        return nn.LogicallyPartitioned(jnp.zeros(shape, ADAPTER_DTYPE), logical)

    return {
        EMBEDDING[0]: {ROWS: zeros((count, hidden_size), (None, "embed"))},
        HEAD[0]: {ROWS: zeros((hidden_size, count), ("embed", None))},
    }


def row_vectors(config: LoraConfig, params: dict) -> dict:
    """Returns the vectors of `config.rows` in a model's weights, with the paths of their adapters;
    {} if there are none."""
    if not config.rows:
        return {}
    return {
        module: {ROWS: jax.lax.slice_in_dim(params[module][name], *config.rows, axis=axis)}
        for (module, name), axis in ((EMBEDDING, 0), (HEAD, 1))
    }


def row_differences(config: LoraConfig, base: dict, vectors: dict) -> dict:
    """Returns the adapters that make of a base the given vectors.

    Args:
      config: the adapters.
      base: weights.
      vectors: as `row_vectors` gives them; of a matrix that is not in it the vectors stay.
    """
    old = row_vectors(config, {name: base[name] for name in (EMBEDDING[0], HEAD[0])})
    return {
        module: {ROWS: vectors[module][ROWS] - old[module][ROWS].astype(ADAPTER_DTYPE)}
        for module in vectors
    }


def check(config: LoraConfig, params: dict) -> None:
    """ValueError if a target names no layer, or the rows are not those of the model.

    Args:
      config: the adapters.
      params: weights made under `adapting`, unboxed; shapes are enough.
    """
    flat = flax.traverse_util.flatten_dict(params)
    layers = sorted({"/".join(path[:-1]) for path in flat if path[-1] == A})
    linear = sorted({"/".join(path[:-1]) for path in flat if path[-1] == "kernel"})
    for pattern in config.targets:
        if not any(_matches(layer, pattern) for layer in layers):
            raise ValueError(
                f"lora.targets: {pattern!r} matches no linear layer; they are {', '.join(linear)}"
            )
    if config.rows and config.rows[1] > flat[EMBEDDING].shape[0]:
        raise ValueError(
            f"lora.rows ends at id {config.rows[1]}, the embedding has "
            f"{flat[EMBEDDING].shape[0]} rows"
        )


def joined(config: LoraConfig, base: dict, adapters: dict) -> dict:
    """Returns the weights to use under `adapting`; those outside the layers are merged."""
    return _merged(config, beside(base, adapters), lambda path: not path[0].startswith("layers"))


def merged(config: LoraConfig, base: dict, adapters: dict) -> dict:
    """Returns W + s A B for every adapter, in the types and shardings of the base."""
    return _merged(config, beside(base, adapters), lambda path: True)


def _merged(config: LoraConfig, params: dict, chosen) -> dict:
    flat = flax.traverse_util.flatten_dict(params)
    for *module, name in [path for path in flat if path[-1] in (A, ROWS) and chosen(path)]:
        if name == A:
            kernel, a, b = (*module, "kernel"), flat.pop((*module, A)), flat.pop((*module, B))
            flat[kernel] = _in_place_of(flat[kernel], _product_added, a, b, scale=config.scale)
        else:
            path, axis = (EMBEDDING, 0) if module == [EMBEDDING[0]] else (HEAD, 1)
            rows = flat.pop((*module, ROWS))
            settings = {"first": config.rows[0], "axis": axis}
            flat[path] = _in_place_of(flat[path], _rows_added, rows, **settings)
    return flax.traverse_util.unflatten_dict(flat)


def _in_place_of(weight, function, *adapters, **settings):
    """Returns function(weight, *adapters), laid out over the devices as the weight is."""
    if isinstance(weight, jax.Array) and not isinstance(weight, jax.core.Tracer):
        return _compiled(function, weight.sharding, **settings)(weight, *adapters)
    return function(weight, *adapters, **settings)


@functools.cache
def _compiled(function, layout, **settings):
    """The function with these settings, compiled once, not at every evaluation."""
    return jax.jit(functools.partial(function, **settings), out_shardings=layout)


def _product_added(kernel, a, b, *, scale: float):
    """kernel + scale A B; of a stack of layers one at a time, since float32 copies are large."""

    def one(arrays):
        kernel, a, b = arrays
        product = jnp.tensordot(a, b, 1, precision="highest", preferred_element_type=jnp.float32)
        return (kernel + scale * product).astype(kernel.dtype)

    # A and B of a stack have one axis more each, the kernel only one.
    stacked = a.ndim + b.ndim - 2 > kernel.ndim
    return jax.lax.map(one, (kernel, a, b)) if stacked else one((kernel, a, b))


def _rows_added(table, rows, *, first: int, axis: int):
    old = jax.lax.slice_in_dim(table, first, first + rows.shape[axis], axis=axis)
    new = (old + rows).astype(table.dtype)
    return jax.lax.dynamic_update_slice_in_dim(table, new, first, axis)
