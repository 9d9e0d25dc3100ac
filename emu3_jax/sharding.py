"""The device mesh and the one table from logical axis names to mesh axes.

Models name the axes of their arrays by meaning ("batch", "heads", "vocab", ...). What a name
means on a machine is decided here and nowhere else, so that any mesh runs the same model code.
A named size that does not divide its mesh axes is an error before anything is compiled, but for
STORAGE_ONLY.
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
    ("code", None),
)
"""Logical axis -> mesh axes, in order of precedence, and why:

batch     every device of `data` and `fsdp` reads its own rows.
sequence  `context` splits long sequences; the only axis that cuts inside a row.
vocab, heads, kv_heads, mlp
          the wide side of each matmul: column- then row-parallel, one reduction per block.
embed     the narrow side of each weight: stored in pieces, gathered for use. Devices of
          `context` hold the same weights as one another, so they share the storage as well.
          On an activation `batch` stands first and takes `fsdp`, which leaves `embed` whole.
layers    the scanned axis: one layer is used at a time, every device needs its part of each.
head_dim  inside one head nothing is worth splitting.
norm      scales and other vectors: a few kilobytes, not worth a gather.
conv_out  channels out of a convolution that is wide on both sides: stored in pieces as `embed`
          is, and `gathered` for use.
code      a codebook of 32,768 x 4 is half a megabyte.
"""

STORAGE_ONLY = ("conv_out",)
"""Names of weights that are stored whole where they do not divide (128 channels on 256 chips): no
computation is laid out by them."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; -1 (one axis at most) takes the devices that are left."""

    data: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1

    def sizes(self, num_devices: int) -> tuple[int, ...]:
        """The four sizes in the order of AXES; ValueError if they do not make `num_devices`."""
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
                    f"mesh {written}: {num_devices} devices cannot be shared out, "
                    f"the given axes need a multiple of {known}"
                )
            sizes[free[0]] = num_devices // known
        elif known != num_devices:
            raise ValueError(f"mesh {written} needs {known} devices, there are {num_devices}")
        return tuple(sizes.values())


def make_mesh(config: MeshConfig = MeshConfig(), devices=None) -> Mesh:
    """Mesh over `devices` (default: all of them), axes AXES, to be used with `jax.set_mesh`.

    Where the devices are several TPU slices, `data` runs over the slices first: between them the
    network is slow, and `data` is the axis that needs it least, once a step.

    Raises:
        ValueError: sizes that do not make the number of devices, or `data` not a multiple of the
            slices.
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
    """Mesh of the first device, where weights go that nobody asks to be spread."""
    return make_mesh(MeshConfig(), jax.devices()[:1])


def mesh_axes(logical: str) -> tuple[str, ...]:
    """Mesh axes that the rules give to one logical axis; () if it stays whole."""
    table = dict(RULES)
    if logical not in table:
        raise ValueError(f"unknown logical axis {logical!r}; RULES has {', '.join(table)}")
    axes = table[logical]
    return axes if isinstance(axes, tuple) else (axes,) if axes else ()


def check_divides(mesh, logical: str, name: str, size: int) -> None:
    """ValueError if `size` of the thing called `name` cannot be cut along `logical` on `mesh`."""
    ways = ways_of(mesh, logical)
    if size % ways:
        axes = [axis for axis in mesh_axes(logical) if mesh.shape[axis] > 1]
        over = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
        raise ValueError(
            f"{name}={size} is split over mesh axis {over}, so it must be a multiple of {ways}"
        )


def ways_of(mesh, logical: str) -> int:
    """Into how many pieces `mesh` cuts a dimension of this name; 1 where `mesh` is empty."""
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in mesh_axes(logical))


def partition_spec(*logical: str | None) -> PartitionSpec:
    """Mesh axes of an array whose dimensions have these logical names (None: whole)."""
    for name in logical:
        if name is not None:
            mesh_axes(name)
    return nn.logical_to_mesh_axes(logical, RULES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch array [B, S]: rows over data and fsdp, positions over context."""
    return NamedSharding(mesh, partition_spec("batch", "sequence"))


def rows_here(mesh: Mesh, rows: int) -> range:
    """The rows, of so many in a batch, that devices of this process hold.

    Processes that share rows (their devices differ in context or tensor) all hold them.
    """
    layout = NamedSharding(mesh, partition_spec("batch"))
    indices = layout.addressable_devices_indices_map((rows,)).values()
    held = {index[0].indices(rows)[:2] for index in indices}
    return range(min(start for start, _ in held), max(stop for _, stop in held))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(abstract_variables, mesh: Mesh):
    """NamedShardings of a tree made by `jax.eval_shape` over boxed linen variables.

    Args:
        abstract_variables: any tree (variables, a train state with its optimizer state, ...)
            whose leaves are ShapeDtypeStructs, boxed by `nn.with_logical_partitioning` where they
            have logical axes; leaves without a box are replicated.
        mesh: where to.

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
        dtype: of all arrays; None keeps each one's own.
    """

    def content(leaf):
        # `nn.unbox` would ask the mesh to lay it out, and here are only shapes.
        is_boxed = isinstance(leaf, nn.meta.AxisMetadata)
        return leaf.unbox(apply_constraint=False) if is_boxed else leaf

    return jax.tree.map(
        lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=layout),
        jax.tree.map(content, boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)),
        state_shardings(boxed, mesh),
    )


def spread(array: np.ndarray, *logical: str | None) -> jax.Array | np.ndarray:
    """An array that every process has whole, in its pieces on the mesh that is set.

    Args:
        array: the same in every process.
        *logical: names of its first dimensions; the others stay whole.

    Returns:
        A global array, of which each device holds its piece; `array` itself outside `jax.set_mesh`.

    Raises:
        ValueError: a named dimension does not divide.
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
    """Host arrays, whole on every device of the mesh that is set, or else on the default device.

    Arrays that are on devices stay where they lie.
    """

    def put(leaf):
        return leaf if isinstance(leaf, jax.Array) else jax.device_put(spread(np.asarray(leaf)))

    return jax.tree.map(put, tree)


def to_host(array: jax.Array | np.ndarray) -> np.ndarray:
    """The whole of an array, of which this process's devices may hold a part.

    All processes that hold a part must call it.
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

    A program that is compiled for a TPU elsewhere has a mesh of TPUs.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """Ask the compiler to lay `x` out by the logical names of its dimensions.

    Outside `jax.set_mesh` this does nothing. A dimension of size 1 is left whole (the one-token
    step of a decoder has no sequence to cut); any other size must divide.
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
    """Ask the compiler for an array to be whole on every device.

    For results that every process reads, and for weights that are stored in pieces where they are
    used. Matmuls need no such word. The kernel of a convolution, left alone, makes the compiler cut
    the channels and gather the batch for them.
    """
    return constrain(array, *(None,) * array.ndim)
