"""Lookup of token ids in a sharded table.

By default the compiler gathers the whole table on every device (1.4 GiB in bfloat16 at the
released sizes) and sums a whole table of gradients. Here every device looks up the tokens of all
devices in its own columns and sends each device its vectors. Only activations cross the mesh; the
table and its gradient stay sharded.
"""

import math

import jax
import jax.numpy as jnp

from emu3_jax.sharding import mesh_axes, partition_spec


def lookup(table_VD: jax.Array, tokens_BS: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rows of the table, rounded to `dtype`: [B, S, D].

    Args:
        table_VD: sharded as ("vocab", "embed").
        tokens_BS: int ids, sharded as ("batch", "sequence"); an id out of range gives some row.
        dtype: of the result.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not _divides(tokens_BS, mesh):
        return jnp.take(table_VD, tokens_BS, axis=0, mode="clip").astype(dtype)

    def local(table_VD, tokens_BS):
        shape, pieces = tokens_BS.shape, mesh_axes("embed")
        tokens_NT = jax.lax.all_gather(tokens_BS.reshape(-1), pieces)
        x_NTD = _own_rows(table_VD, tokens_NT).astype(dtype)
        x_TD = jax.lax.all_to_all(x_NTD, pieces, split_axis=0, concat_axis=2, tiled=True)
        return jax.lax.psum(x_TD, mesh_axes("vocab")).reshape(*shape, -1)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(partition_spec("vocab", "embed"), partition_spec("batch", "sequence")),
        out_specs=partition_spec("batch", "sequence", None),
    )(table_VD, tokens_BS)


def _divides(tokens_BS, mesh) -> bool:
    """Whether the tokens can be sharded over the mesh; those of one prompt or one step cannot."""
    rows, length = tokens_BS.shape
    batch, sequence = (
        math.prod(mesh.shape[axis] for axis in mesh_axes(name)) for name in ("batch", "sequence")
    )
    return rows % batch == 0 and length % sequence == 0


def _own_rows(table_VD, tokens):
    """Vectors of the ids whose rows this device holds, zeros for other ids."""
    rows = table_VD.shape[0]
    indices = tokens - rows * jax.lax.axis_index(mesh_axes("vocab"))
    x = jnp.take(table_VD, indices, axis=0, mode="clip")
    return jnp.where(((indices >= 0) & (indices < rows))[..., None], x, 0)
