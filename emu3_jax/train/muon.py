"""Muon: the matrices of the layers move by their orthogonalised momentum, all else by AdamW.

Jordan 2024 (github.com/KellerJordan/Muon); the size of updates is that of Liu et al. 2025
(arXiv 2502.16982, section 2.2), so that a learning rate and a weight decay of AdamW can stay.
"""

import math
import operator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

# Layer → axes of its kernel, from the last: those of the input, those of the output. What is left
# in front is a stack of layers. An attention layer is one matrix for all its heads.
MATRICES = {
    "query": ((-3,), (-2, -1)),
    "key": ((-3,), (-2, -1)),
    "value": ((-3,), (-2, -1)),
    "output": ((-3, -2), (-1,)),
    "gate": ((-2,), (-1,)),
    "up": ((-2,), (-1,)),
    "down": ((-2,), (-1,)),
}
# Root mean square of AdamW's updates over that of Muon's, times the root of the longer side.
ADAMW_RMS = 0.2


def scale_by_muon_and(
    others: optax.GradientTransformation, momentum: float
) -> optax.GradientTransformation:
    """Returns the transformation of gradients: Muon for the layers, `others` for the rest.

    Args:
      others: that of embeddings, output layer and norms.
      momentum: decay per step of the momentum, which is Nesterov's.

    Raises:
      ValueError: in `init`, if the params have no layers of a transformer.
    """
    muon = optax.chain(
        scale_by_muon(beta=momentum, weight_dimension_numbers=_dimension_numbers),
        optax.stateless(lambda updates, _: jax.tree.map(_scaled, updates, _factors(updates))),
    )
    both = optax.chain(
        optax.masked(muon, is_matrix),
        optax.masked(others, lambda tree: jax.tree.map(operator.not_, is_matrix(tree))),
    )

    def init(params):
        if not any(jax.tree.leaves(is_matrix(params))):
            raise ValueError(
                "optimizer.kind=muon moves the matrices of a transformer's layers, and this model "
                "has none; use adamw"
            )
        return both.init(params)

    return optax.GradientTransformation(init, both.update)


def is_matrix(tree: Any) -> Any:
    """Returns a tree that is True at the kernels of MATRICES; a box counts as its leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: _axes(path) is not None,
        tree,
        is_leaf=lambda node: isinstance(node, nn.meta.AxisMetadata),
    )


def _axes(path) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    names = [part.key for part in path if isinstance(part, jax.tree_util.DictKey)]
    return MATRICES.get(names[-2]) if names[-1:] == ["kernel"] and len(names) > 1 else None


def _dimension_numbers(tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: MuonDimensionNumbers(*_axes(path)), tree
    )


def _factors(tree: Any) -> Any:
    def factor(path, leaf) -> float:
        sides = [math.prod(leaf.shape[axis] for axis in axes) for axes in _axes(path)]
        return ADAMW_RMS * math.sqrt(max(sides))

    return jax.tree_util.tree_map_with_path(factor, tree)


def _scaled(update: jax.Array, factor: float) -> jax.Array:
    return jnp.asarray(factor, update.dtype) * update
