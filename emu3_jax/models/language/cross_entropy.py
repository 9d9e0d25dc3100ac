"""Next-token cross-entropy that never holds the logits of more than a few positions.

At 184,622 ids the logits of one row of 5,120 tokens are 3.8 GB in float32. Here positions are
processed in chunks. The total is a sum over positions, so a chunk's part of its gradient is known
as soon as its logits are. The forward pass computes it right away, and the backward pass only
scales it. Nothing is computed twice.

`nll` has a gradient too, for losses that are not a weighted sum of it, such as a preference loss.
The scale of each token is then known only in the backward pass, which computes the chunks again.
JAX reports at trace time which outputs are differentiated (`symbolic_zeros`): if it is the total
alone, there is no second computation.

Collectives are written by hand. The compiler would sum the gradient of the vocabulary matrix over
all devices once per chunk. Here the matrix is gathered once, in the compute type, and its gradient
is summed once, after the last chunk. No device holds all of either (1.4 GiB each at the released
sizes): groups of up to GROUP devices share their positions, a chunk at a time, and each computes
the logits of its columns for all of them.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from emu3_jax.models.language.layers import precision
from emu3_jax.sharding import check_divides, mesh_axes, partition_spec

MASKED = -1e30

GROUP = 8
"""Devices that share their positions. A device holds 1/GROUP of the vocabulary matrix and of its
gradient, and receives GROUP times the activations of a chunk: at 8 both are small."""


class CrossEntropy(NamedTuple):
    """Sums for the loss, and the values they were summed from.

    Attributes:
        total: float32 scalar, sum of weight x (nll + z-loss). The loss is total / weight, taken
            after the sum over micro-batches. Its gradient costs two products per chunk.
        weight: float32 scalar, sum of weights.
        nll: float32 [B, S], -log p(target), without z-loss and not weighted. Its gradient costs
            three products per chunk, as the logits are computed again.
    """

    total: jax.Array
    weight: jax.Array
    nll: jax.Array


class _Options(NamedTuple):
    vocab_size: int
    chunk_tokens: int
    z_loss: float
    unroll: bool


def chunked_cross_entropy(
    x_BSD: jax.Array,
    unembedding_DV: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    vocab_size: int,
    chunk_tokens: int = 512,
    z_loss: float = 0.0,
    unroll: bool = False,
) -> CrossEntropy:
    """Weighted cross-entropy of hidden states times the vocabulary matrix.

    Args:
        x_BSD: output of `Transformer.hidden`; matmuls run in its dtype, the rest in float32.
        unembedding_DV: params["lm_head"]["kernel"], V >= vocab_size; the columns above get no
            probability and no gradient.
        targets: int [B, S]; any id below vocab_size where the weight is 0.
        weights: float [B, S] of each target.
        vocab_size: true number of ids.
        chunk_tokens: positions per chunk and device, over all its rows; a device holds as many
            numbers as their logits have. Fewer need less memory; more read and write the gradient
            of the matrix less often.
        z_loss: coefficient of log(Z)^2, which keeps the normaliser near 1 (0: none).
        unroll: unroll the loop over chunks, which takes longer to compile.

    Raises:
        ValueError: rows or positions that cannot be sharded over the mesh.
    """
    weights = weights.astype(jnp.float32)
    options = _Options(vocab_size, chunk_tokens, z_loss, unroll)
    total, nll_BS = _cross_entropy(options, x_BSD, unembedding_DV, targets, weights)
    return CrossEntropy(total, jnp.sum(weights), nll_BS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(options, x_BSD, unembedding_DV, targets_BS, weights_BS):
    arrays = (x_BSD, unembedding_DV, targets_BS, weights_BS)
    return _on_mesh(options, False, *arrays)


def _forward(options, *primals):
    arrays = [primal.value for primal in primals]
    total, nll_BS, *gradients = _on_mesh(options, True, *arrays)
    return (total, nll_BS), (arrays, gradients)


def _backward(options, residuals, cotangents):
    """Gradients are linear in the cotangents: that of the total plus that of the nll."""
    (x_BSD, unembedding_DV, targets_BS, _), gradients = residuals
    total, nll_BS = cotangents
    parts = []
    if not isinstance(total, SymbolicZero):
        parts.append([g * total.astype(g.dtype) for g in gradients])
    if not isinstance(nll_BS, SymbolicZero):
        # The gradient of another total, whose weights are the cotangents, without z-loss.
        options = options._replace(z_loss=0.0)
        _, _, dx, dw, _ = _on_mesh(options, True, x_BSD, unembedding_DV, targets_BS, nll_BS)
        parts.append([dx, dw, jnp.zeros_like(nll_BS)])
    dx_BSD, dw_DV, dweights_BS = (functools.reduce(jnp.add, p) for p in zip(*parts, strict=True))
    return dx_BSD, dw_DV, None, dweights_BS


_cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)


class _Shares(NamedTuple):
    """Which devices of a mesh share what, as indices along the axes `pieces`.

    The vocabulary matrix is stored in `count` pieces. A group is `size` neighbours that together
    hold all columns. `within` lists the members of each group, `across` the members of all groups
    with the same columns.
    """

    pieces: tuple[str, ...]
    count: int
    size: int

    @classmethod
    def of(cls, mesh, columns: int) -> "_Shares":
        """The largest groups that GROUP, the pieces and the columns of the matrix allow."""
        pieces = mesh_axes("embed")
        count = math.prod(mesh.shape[axis] for axis in pieces)
        columns //= math.prod(mesh.shape[axis] for axis in mesh_axes("vocab"))
        return cls(pieces, count, math.gcd(GROUP, count, columns))

    @property
    def within(self) -> list[list[int]]:
        return [[*range(i, i + self.size)] for i in range(0, self.count, self.size)]

    @property
    def across(self) -> list[list[int]]:
        return [[*range(i, self.count, self.size)] for i in range(self.size)]

    def position(self):
        """The position of this device in its group."""
        return jax.lax.axis_index(self.pieces) % self.size

    def gather_matrix(self, kernel_DV):
        """The device's piece, some rows of all columns -> all rows of its columns."""
        kernel_DV = jax.lax.all_to_all(
            kernel_DV, self.pieces, 1, 0, tiled=True, axis_index_groups=self.within
        )
        return jax.lax.all_gather(
            kernel_DV, self.pieces, axis=0, tiled=True, axis_index_groups=self.across
        )

    def scatter_matrix(self, dw_DV):
        """The transpose of `gather_matrix`, summed over the devices that share the columns."""
        dw_DV = jax.lax.psum_scatter(
            dw_DV, self.pieces, scatter_dimension=0, tiled=True, axis_index_groups=self.across
        )
        return jax.lax.all_to_all(
            dw_DV, self.pieces, 0, 1, tiled=True, axis_index_groups=self.within
        )

    def gather_tokens(self, a):
        """[C, …] of each member -> [size x C, …]."""
        return jax.lax.all_gather(a, self.pieces, axis=0, tiled=True, axis_index_groups=self.within)

    def scatter_tokens(self, a):
        """The transpose: [size x C, …] -> the device's [C, …], summed over the group."""
        return jax.lax.psum_scatter(
            a, self.pieces, scatter_dimension=0, tiled=True, axis_index_groups=self.within
        )

    def over_vocabulary(self, reduce_local, reduce_mesh, a):
        """Reduces the results of all devices, each over its own columns."""
        parts = jax.lax.all_gather(a, self.pieces, axis_index_groups=self.within)
        return reduce_mesh(reduce_local(parts, axis=0), mesh_axes("vocab"))


def _on_mesh(options, gradient: bool, x_BSD, unembedding_DV, targets_BS, weights_BS):
    """Total and nll; with `gradient` also d total / d x, d matrix and d weights."""
    arrays = (x_BSD, unembedding_DV, targets_BS, weights_BS)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or 1 in targets_BS.shape:  # a single row or column is not sharded
        return _sums(options, gradient, None, *arrays)
    check_divides(mesh, "batch", "rows of the batch", targets_BS.shape[0])
    check_divides(mesh, "sequence", "sequence length", targets_BS.shape[1])
    rows = partition_spec("batch", "sequence")
    hidden = partition_spec("batch", "sequence", None)
    matrix = partition_spec("embed", "vocab")
    whole = partition_spec()
    return jax.shard_map(
        functools.partial(_sums, options, gradient, _Shares.of(mesh, unembedding_DV.shape[1])),
        mesh=mesh,
        in_specs=(hidden, matrix, rows, rows),
        out_specs=(whole, rows) + ((hidden, matrix, rows) if gradient else ()),
        check_vma=False,
    )(*arrays)


def _sums(options, gradient: bool, shares, x_BSD, unembedding_DV, targets_BS, weights_BS):
    """`_on_mesh` on one device of the mesh, or (`shares` is None) on whole arrays."""
    dtype = x_BSD.dtype
    kernel_DV = unembedding_DV.astype(dtype)
    if shares:
        kernel_DV = shares.gather_matrix(kernel_DV)

    tokens = targets_BS.size
    chunk = min(options.chunk_tokens, tokens)
    padding = -tokens % chunk

    def split(a):
        """[B, S, …] -> [chunks, chunk, …], zeros at the end."""
        a = a.reshape(tokens, *a.shape[2:])
        a = jnp.pad(a, [(0, padding)] + [(0, 0)] * (a.ndim - 1))
        return a.reshape(-1, chunk, *a.shape[1:])

    def merge(a):
        return a.reshape(-1, *a.shape[2:])[:tokens].reshape(*targets_BS.shape, *a.shape[2:])

    def body(carry, inputs):
        total, dw_DV = carry
        chunk_total, nll_C, *gradients = _chunk(options, gradient, shares, kernel_DV, *inputs)
        if gradient:
            dw_DV = dw_DV + gradients.pop(1)
        return (total + chunk_total, dw_DV), (nll_C, *gradients)

    # The sum over chunks is float32: bfloat16 would lose the small terms.
    dw_DV = jnp.zeros(kernel_DV.shape if gradient else (), jnp.float32)
    (total, dw_DV), (nll, *gradients) = jax.lax.scan(
        body,
        (jnp.zeros((), jnp.float32), dw_DV),
        (split(x_BSD), split(targets_BS), split(weights_BS)),
        unroll=options.unroll,
    )
    if shares:
        total = jax.lax.psum(total, (*mesh_axes("batch"), *mesh_axes("sequence")))
    if not gradient:
        return total, merge(nll)
    dx_BSD, dweights_BS = map(merge, gradients)
    if shares:
        dx_BSD = jax.lax.psum(dx_BSD, mesh_axes("vocab"))
        rest = tuple(axis for axis in mesh_axes("batch") if axis not in shares.pieces)
        # Summed over the mesh in the compute type, as the gradients of all other weights.
        dw_DV = shares.scatter_matrix(dw_DV.astype(dtype)).astype(jnp.float32)
        # The backward pass of the layers then keeps the pieces, not the sums they come from.
        dx_BSD, dw_DV = jax.lax.optimization_barrier((dx_BSD, dw_DV))
        dw_DV = jax.lax.psum(dw_DV, rest)
    return total, merge(nll), dx_BSD, dw_DV.astype(unembedding_DV.dtype), dweights_BS


def _chunk(options, gradient: bool, shares, kernel_DV, x_CD, targets_C, weights_C):
    """Total and nll [C] of one chunk; with `gradient` also the three gradients of its total.

    On a mesh the columns of `kernel_DV` are this device's part of the vocabulary, and the G
    positions are those of its group.
    """
    chunk, columns = targets_C.size, kernel_DV.shape[1]
    first = 0
    if shares:
        part = jax.lax.axis_index(mesh_axes("vocab")) * shares.size + shares.position()
        first = part * columns

    def gathered(a):
        return shares.gather_tokens(a) if shares else a

    def own(a):
        return jax.lax.dynamic_slice_in_dim(a, shares.position() * chunk, chunk) if shares else a

    def over_vocabulary(reduce_local, reduce_mesh, a):
        return shares.over_vocabulary(reduce_local, reduce_mesh, a) if shares else a

    def dot(a, b, contract, dtype):
        dimensions = (contract, ((), ()))
        exact = precision(x_CD.dtype)
        return jax.lax.dot_general(a, b, dimensions, exact, preferred_element_type=dtype)

    x_GD, targets_G, weights_G = map(gathered, (x_CD, targets_C, weights_C))
    ids_V = first + jnp.arange(columns)
    logits = dot(x_GD, kernel_DV, ((1,), (0,)), jnp.float32)
    logits = jnp.where(ids_V < options.vocab_size, logits, MASKED)
    highest_G = over_vocabulary(jnp.max, jax.lax.pmax, jnp.max(logits, axis=-1))
    exp_GV = jnp.exp(logits - highest_G[:, None])
    # A masked sum, not an index: the target is among the columns of one device.
    is_target = ids_V == targets_G[:, None]
    target_G = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    sums = jnp.stack([jnp.sum(exp_GV, axis=-1), target_G])
    z_G, target_G = over_vocabulary(jnp.sum, jax.lax.psum, sums)
    log_z_G = jnp.log(z_G) + highest_G
    nll_C, log_z_C = own(log_z_G - target_G), own(log_z_G)
    losses_C = nll_C + options.z_loss * jnp.square(log_z_C)
    total = jnp.sum(weights_C * losses_C)
    if not gradient:
        return total, nll_C
    scale_G = weights_G * (1 + 2 * options.z_loss * log_z_G) / z_G
    dlogits = exp_GV * scale_G[:, None] - jnp.where(is_target, weights_G[:, None], 0.0)
    dlogits = dlogits.astype(x_CD.dtype)
    dx_GD = dot(dlogits, kernel_DV, ((1,), (1,)), x_CD.dtype)
    dw_DV = dot(x_GD, dlogits, ((0,), (0,)), jnp.float32)
    dx_CD = shares.scatter_tokens(dx_GD) if shares else dx_GD
    return total, nll_C, dx_CD, dw_DV, losses_C
