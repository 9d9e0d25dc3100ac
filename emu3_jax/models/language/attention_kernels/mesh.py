"""Runs an attention over the mesh: each device for its own rows, heads and queries.

The compiler cannot shard a Pallas kernel or a loop over blocks of a row, so this is done by hand.
The batch is sharded over the mesh axes of "batch", heads over those of "heads". If rows are sharded
over `context` as well, their tokens are in zigzag order (zigzag.py): a device keeps the queries of
its two chunks and gathers the keys and values of whole rows, which grouped-query attention keeps
small. The transpose of that gather sums the gradients on the devices of the keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from emu3_jax.models.language import zigzag
from emu3_jax.sharding import mesh_axes, partition_spec


class Part(NamedTuple):
    """The part of the whole batch that a device holds.

    Attributes:
        chunk_starts: int32 [devices, chunks], first position of each chunk of queries, for every
            device of `context`; a single device has one chunk.
        device: index into `chunk_starts`.
        first_row, first_head: index of the first row in the batch and of the first head.
    """

    chunk_starts: np.ndarray
    device: jax.Array | int
    first_row: jax.Array | int
    first_head: jax.Array | int

    def positions(self, queries: int) -> jax.Array:
        """Position in the row of each of the device's queries, int32 [queries]."""
        starts = jnp.asarray(self.chunk_starts)[self.device]
        chunk = jnp.arange(queries // starts.size, dtype=jnp.int32)
        return (starts[:, None] + chunk).reshape(-1)


def over_mesh(attend, q_BSNH, k_BSKH, v_BSKH, segment_ids_BS, key=None) -> jax.Array:
    """attend(q, k, v, q_segments, k_segments, part, key) for the part of each device.

    In `attend`, q [B, S, N, H] and q_segments [B, S] are the device's part; k, v [B, T, K, H] and
    k_segments [B, T] are whole rows in their natural order. Returns [B, S, N, H].
    """
    mesh = jax.sharding.get_abstract_mesh()
    length = q_BSNH.shape[1]
    devices = zigzag.parts(length)
    starts = zigzag.chunk_starts(length, devices)
    if mesh.empty:
        part = Part(starts, 0, 0, 0)
        return attend(q_BSNH, k_BSKH, v_BSKH, segment_ids_BS, segment_ids_BS, part, key)

    # As in `sharding.constrain`, a dimension of size 1 is not sharded.
    batch = "batch" if q_BSNH.shape[0] > 1 else None
    sequence = "sequence" if length > 1 else None
    heads = "heads" if q_BSNH.shape[2] > 1 else None
    kv_heads = "kv_heads" if k_BSKH.shape[2] > 1 else None

    def local(q_BSNH, k_BSKH, v_BSKH, segments_BS, key):
        part = Part(
            starts,
            _index("sequence") if devices > 1 else 0,
            _index("batch") * q_BSNH.shape[0] if batch else 0,
            _index("heads") * q_BSNH.shape[2] if heads else 0,
        )
        k_BTKH, v_BTKH, k_segments_BT = (
            _whole_rows(a, devices) for a in (k_BSKH, v_BSKH, segments_BS)
        )
        return attend(q_BSNH, k_BTKH, v_BTKH, segments_BS, k_segments_BT, part, key)

    q_spec = partition_spec(batch, sequence, heads, None)
    kv_spec = partition_spec(batch, sequence, kv_heads, None)
    row_spec = partition_spec(batch, sequence)
    return jax.shard_map(
        local,
        in_specs=(q_spec, kv_spec, kv_spec, row_spec, PartitionSpec()),
        out_specs=q_spec,
        check_vma=False,  # Pallas kernels do not declare over which axes their results vary
    )(q_BSNH, k_BSKH, v_BSKH, segment_ids_BS, key)


def _index(logical):
    return jax.lax.axis_index(mesh_axes(logical))


def _whole_rows(x_BS, devices):
    if devices == 1:
        return x_BS
    x_BT = jax.lax.all_gather(x_BS, zigzag.AXIS, axis=1, tiled=True)
    return zigzag.natural_order(x_BT, devices, axis=1)
