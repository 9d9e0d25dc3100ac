"""The weights beside which adapters are trained: read leaf by leaf, identified, stored as int8.

Where the start of a task can be read leaf by leaf (`InitialWeights`) and is
stored as int8, the devices never hold the float model: only what is stored and one leaf, a stack of
kernels of one kind. Any other start makes the whole model first, in `model.param_dtype`.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from emu3_jax.interop.formats.onto_mesh import Path
from emu3_jax.interop.language import weights_fingerprint
from emu3_jax.models.language import int8
from emu3_jax.train.run.checkpoint import check_same_tree
from emu3_jax.train.tasks.language.initial_weights import InitialWeights

ROUNDED = "bfloat16"  # for the fingerprint: a base may be stored in float32 or in bfloat16


class Base(NamedTuple):
    """The frozen weights of a run.

    Attributes:
      weights: tree, in the form in which they are stored.
      fingerprint: of the floats that were read, rounded to bfloat16, whatever form is stored.
      others: the variables that are not weights of the model.
    """

    weights: dict
    fingerprint: str
    others: dict


def read(
    begin: Callable[[dict], dict], variables: dict, like: dict, dtype: str, vocab_size: int
) -> Base:
    """Reads the weights of a start.

    Args:
      begin: the result of `Task.initial_weights`.
      variables: those of the task, without the frozen weights.
      like: the frozen weights as they are stored, arrays on a mesh. Its int8 kernels are freed one
        by one, so that those that are read take their room.
      dtype: of the floats from which int8 is made (`model.param_dtype`).
      vocab_size: true number of ids.

    Raises:
      ValueError: as `begin`.
    """
    stored = flax.traverse_util.flatten_dict(like)
    others, leaves = _leaves(begin, variables, int8.as_floats(stored, dtype))
    parts = {}
    for path, leaf in leaves:
        parts[path] = weights_fingerprint.of_leaf(path, leaf, vocab_size, ROUNDED)
        scale = (*path[:-1], int8.SCALE)
        if path[-1] == int8.KERNEL and scale in stored:
            old = stored[path]
            leaf = jax.device_put(leaf, old.sharding)
            stored[path], stored[scale] = int8.quantized(leaf, stored[scale])
            stored[path].block_until_ready()  # else the next leaf is read before this one is freed
            old.delete()
        else:
            stored[path] = leaf
    for path in stored.keys() - parts.keys():
        if path[-1] != int8.SCALE:  # vectors of ids that the start does not share
            parts[path] = weights_fingerprint.of_leaf(path, stored[path], vocab_size, ROUNDED)
    weights = flax.traverse_util.unflatten_dict(stored)
    return Base(weights, weights_fingerprint.together(parts), others)


def _leaves(
    begin: Callable[[dict], dict], variables: dict, floats: dict[Path, Any]
) -> tuple[dict, Iterator[tuple[Path, Any]]]:
    """(the other variables, (path, array) of the base leaf by leaf)."""
    if isinstance(begin, InitialWeights) and begin.read and begin.project is None:
        return {n: x for n, x in variables.items() if n != "params"}, begin.read(floats)
    made = flax.traverse_util.unflatten_dict({path: _made(x) for path, x in floats.items()})
    others = dict(begin({**variables, "params": made}))
    params = nn.unbox(others.pop("params"))
    check_same_tree(params, made, "start", types=False)
    return others, _let_go(flax.traverse_util.flatten_dict(params))


def _made(x: Any) -> jax.Array:
    """An array of zeros for a ShapeDtypeStruct."""
    if isinstance(x, jax.Array):
        return x
    return jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=x.sharding)(x.shape, x.dtype)


def _let_go(flat: dict[Path, Any]) -> Iterator[tuple[Path, Any]]:
    """The items, each forgotten when the next is asked for."""
    for path in list(flat):
        yield path, flat.pop(path)
