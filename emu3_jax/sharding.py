"""The device mesh and the one table from logical axis names to mesh axes.

Models name the axes of their arrays by meaning ("batch", "heads", "vocab", ...). Only this module
maps names to mesh axes, so any mesh runs the same model code. A named size that its mesh axes do
not divide is an error before anything is compiled, except for STORAGE_ONLY.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "context", "tensor")

RULES = (
    ("batch", ("data", "fsdp")),
    ("sequence", "context"),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("embed", ("fsdp", "context")),
    ("layers", None),
    ("head_dim", None),
    ("norm", None),
    ("conv_out", ("fsdp", "context")),
    ("rank", ("fsdp", "context")),
    ("code", None),
)
"""Logical axis -> mesh axes, in order of precedence, with reasons:

batch     every device of `data` and `fsdp` reads its own rows.
sequence  `context` splits long sequences; it is the only axis that splits rows.
vocab, heads, kv_heads, mlp
          the wide side of each matmul: column- then row-parallel, one reduction per block.
embed     the narrow side of each weight: stored in shards, gathered for use. Devices along
          `context` use the same weights, so they share the storage as well. On an activation
          `batch` comes first and takes `fsdp`, so `embed` is not split there.
layers    the scanned axis: one layer is used at a time, and every device needs its part of each.
head_dim  one head is too small to split.
norm      scales and other vectors: a few kilobytes, not worth a gather.
conv_out  output channels of a convolution that is wide on both sides: stored in shards like
          `embed`, and `gathered` for use.
rank      inner dimension of a low-rank adapter: where its other dimension is not the narrow side of
          the weight, it is stored in shards by this one.
code      a codebook of 32,768 x 4 is half a megabyte.
"""

STORAGE_ONLY = ("conv_out", "rank")
"""Names of weights that are replicated if the mesh does not divide them (128 channels on 256
chips, a rank of 8 on 16): no computation depends on their sharding."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes in devices; -1 (for at most one axis) takes the remaining devices.

    Attributes:
      data: devices that share the rows of a batch, with whole weights.
      fsdp: devices that share the rows of a batch and the weights.
      context: devices that share the tokens of a row.
      tensor: devices that share the heads and the width of each layer.
    """

    data: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1

    def sizes(self, num_devices: int) -> tuple[int, ...]:
        """The four sizes in the order of AXES; ValueError if their product is not `num_devices`."""
        sizes = {axis: getattr(self, axis) for axis in AXES}
        written = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
        for axis, size in sizes.items():
            if size == 0 or size < -1:
                raise ValueError(f"mesh.{axis}={size} must be a positive number or -1")
        free = [axis for axis, size in sizes.items() if size == -1]
        if len(free) > 1:
            raise ValueError(f"mesh {written}: at most one axis may be -1, got {len(free)}")
        known = math.prod(size for size in sizes.values() if size != -1)
        if free:
            if num_devices % known:
                raise ValueError(
                    f"mesh {written}: the given axes need a multiple of {known} devices, "
                    f"there are {num_devices}"
                )
            sizes[free[0]] = num_devices // known
        elif known != num_devices:
            raise ValueError(f"mesh {written} needs {known} devices, there are {num_devices}")
        return tuple(sizes.values())


def make_mesh(config: MeshConfig = MeshConfig(), devices=None) -> Mesh:
    """Mesh over `devices` (default: all of them), axes AXES, to be used with `jax.set_mesh`.

    With several TPU slices, `data` runs over the slices first: the network between them is slow,
    and `data` needs it least, once per step.

    Raises:
        ValueError: the product of the sizes is not the number of devices, or `data` is not a
            multiple of the slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = config.sizes(len(devices))
    slices = len({getattr(device, "slice_index", None) for device in devices})
    if slices > 1:
        data, *inside = sizes
        if data % slices:
            raise ValueError(
                f"mesh.data={data} must be a multiple of the {slices} slices: of all axes only "
                "data may cross the network between slices"
            )
        grid = mesh_utils.create_hybrid_device_mesh(
            (data // slices, *inside),
            (slices, 1, 1, 1),
            devices,
            allow_split_physical_axes=True,
        )
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def one_device() -> Mesh:
    """Mesh of the first device, the default for weights that are not to be sharded."""
    return make_mesh(MeshConfig(), jax.devices()[:1])


def mesh_axes(logical: str) -> tuple[str, ...]:
    """Mesh axes of one logical axis in RULES; () if it is not sharded."""
    table = dict(RULES)
    if logical not in table:
        raise ValueError(f"unknown logical axis {logical!r}; RULES has {', '.join(table)}")
    axes = table[logical]
    return axes if isinstance(axes, tuple) else (axes,) if axes else ()


def check_divides(mesh, logical: str, name: str, size: int) -> None:
    """ValueError if `mesh` does not divide `size`, called `name`, along `logical`."""
    ways = ways_of(mesh, logical)
    if size % ways:
        axes = [axis for axis in mesh_axes(logical) if mesh.shape[axis] > 1]
        over = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
        raise ValueError(
            f"{name}={size} is split over mesh axis {over}, so it must be a multiple of {ways}"
        )


def ways_of(mesh, logical: str) -> int:
    """The number of shards of a dimension of this name on `mesh`; 1 if `mesh` is empty."""
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in mesh_axes(logical))


def partition_spec(*logical: str | None) -> PartitionSpec:
    """Mesh axes of an array whose dimensions have these logical names (None: not sharded)."""
    for name in logical:
        if name is not None:
            mesh_axes(name)
    return nn.logical_to_mesh_axes(logical, RULES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch array [B, S]: rows over data and fsdp, positions over context."""
    return NamedSharding(mesh, partition_spec("batch", "sequence"))


def rows_here(mesh: Mesh, rows: int) -> range:
    """The rows of a batch of `rows` that devices of this process hold.

    Processes whose devices differ only in context or tensor hold the same rows.
    """
    layout = NamedSharding(mesh, partition_spec("batch"))
    indices = layout.addressable_devices_indices_map((rows,)).values()
    held = {index[0].indices(rows)[:2] for index in indices}
    return range(min(start for start, _ in held), max(stop for _, stop in held))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that is replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(abstract_variables, mesh: Mesh):
    """NamedShardings of a tree made by `jax.eval_shape` over boxed linen variables.

    Args:
        abstract_variables: any tree (variables, a train state with its optimizer state, ...)
            whose leaves are ShapeDtypeStructs, boxed by `nn.with_logical_partitioning` where they
            have logical axes; leaves without a box are replicated.
        mesh: of the shardings.

    Returns:
        The tree without boxes (as `nn.unbox` gives it), each leaf a NamedSharding.

    Raises:
        ValueError: names the array, the dimension and the mesh axes that do not divide it.
    """

    def sharding(path, leaf, spec):
        names = list(spec)
        for i, (size, logical) in enumerate(zip(leaf.shape, spec, strict=False)):
            if logical in STORAGE_ONLY and size % ways_of(mesh, logical):
                names[i] = None
            elif logical is not None:
                check_divides(mesh, logical, f"{jax.tree_util.keystr(path)} ({logical})", size)
        return NamedSharding(mesh, partition_spec(*names))

    specs = nn.get_partition_spec(abstract_variables)
    return jax.tree_util.tree_map_with_path(sharding, nn.unbox(abstract_variables), specs)


def abstract_arrays(boxed, mesh: Mesh, dtype=None):
    """Shapes, dtypes and shardings of a tree of boxed abstract variables, without boxes.

    Args:
        boxed, mesh: as in `state_shardings`, which may raise.
        dtype: of all arrays; None keeps the dtype of each.
    """

    def content(leaf):
        # `nn.unbox` would apply a sharding constraint, which shapes do not take.
        is_boxed = isinstance(leaf, nn.meta.AxisMetadata)
        return leaf.unbox(apply_constraint=False) if is_boxed else leaf

    return jax.tree.map(
        lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=layout),
        jax.tree.map(content, boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)),
        state_shardings(boxed, mesh),
    )


def spread(array: np.ndarray, *logical: str | None) -> jax.Array | np.ndarray:
    """Shards an array that every process holds over the mesh that is set.

    Args:
        array: the same in every process.
        *logical: names of its first dimensions; the others are not sharded.

    Returns:
        A global array, of which each device holds its shard; `array` itself outside `jax.set_mesh`.

    Raises:
        ValueError: the mesh does not divide a named dimension.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return array
    for name, size in zip(logical, array.shape, strict=False):
        if name is not None:
            check_divides(mesh, name, name, size)
    layout = NamedSharding(mesh, partition_spec(*logical))
    return jax.make_array_from_callback(array.shape, layout, lambda index: array[index])


def on_devices(tree: Any) -> Any:
    """Host arrays, replicated on the mesh that is set, or else on the default device.

    Arrays that are on devices stay where they are.
    """

    def put(leaf):
        return leaf if isinstance(leaf, jax.Array) else jax.device_put(spread(np.asarray(leaf)))

    return jax.tree.map(put, tree)


def to_host(array: jax.Array | np.ndarray) -> np.ndarray:
    """The whole array on the host; this process's devices may hold only a part of it.

    All processes that hold a part must call this function.
    """
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        array = jax.jit(_itself, out_shardings=replicated(array.sharding.mesh))(array)
    return np.asarray(array)


def _itself(array):  # one function, so that each shape is compiled once
    return array


def platform() -> str:
    """ "cpu", "gpu" or "tpu": of the mesh that is set, else the default one.

    When a program is compiled for TPUs on another machine, the mesh has TPUs.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """Constrains the sharding of `x` by the logical names of its dimensions.

    Outside `jax.set_mesh` this does nothing. A dimension of size 1 is not sharded (such as the
    sequence in a one-token step of decoding); the mesh must divide any other size.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    if len(logical) != x.ndim:
        raise ValueError(f"{len(logical)} logical names {logical} for an array of shape {x.shape}")
    names = [None if size == 1 else name for size, name in zip(x.shape, logical, strict=True)]
    for name, size in zip(names, x.shape, strict=True):
        if name is not None:
            check_divides(mesh, name, name, size)
    return jax.lax.with_sharding_constraint(x, partition_spec(*names))


def gathered(array: jax.Array) -> jax.Array:
    """Constrains an array to be replicated on every device.

    For results that every process reads, and for the use of weights that are stored in shards.
    Matmuls do not need it. For a convolution without it, the compiler shards the channels of the
    kernel and gathers the batch.
    """
    return constrain(array, *(None,) * array.ndim)
