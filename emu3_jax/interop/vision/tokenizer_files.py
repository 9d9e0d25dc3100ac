"""Vision tokenizer weights in BAAI's and the -hf layout: config.json and safetensors.

The layouts are data: `MODULES` rewrites the path of a module, `LEAVES` gives the names of its
arrays and the order of their axes, `HF_NAMES` maps a BAAI name to an -hf one. The config fixes
every array of the model, and each array has one name and one shape in the file. This list of pairs
serves loading, saving and the report of misfits.
"""

import dataclasses
import functools
import itertools
import os
import re
from collections.abc import Collection, Iterator

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from emu3_jax import sharding
from emu3_jax.interop.formats.onto_mesh import OntoMesh
from emu3_jax.interop.formats.safetensors_io import (
    SAME,
    Tensors,
    as_type,
    check_dtype,
    differences,
    write_tensors,
)
from emu3_jax.interop.vision.vision_config import is_hf, read_tokenizer_config, write_released
from emu3_jax.models.vision.tokenizer import VisionTokenizer
from emu3_jax.models.vision.tokenizer_config import VisionTokenizerConfig

# Path of a module here -> its name in the file, one substitution after the other.
MODULES = (
    (r"(down|up)_(\d+)/(block|attn)_(\d+)", r"\1.\2.\3.\4"),
    (r"(down|up)_(\d+)/(downsample|upsample)", r"\1.\2.\3"),
    (r"(time_conv|time_res_stack)_(\d+)", r"\1.\2"),
    (r"/", r"."),
)

# (collection, array) -> (name in the file, axes of the file's array in the order used here).
# Convolutions: torch has (out, in, *kernel), this package (*kernel, in, out).
LEAVES = {
    ("params", "kernel"): ("weight", {4: (2, 3, 1, 0), 5: (2, 3, 4, 1, 0)}),
    ("params", "bias"): ("bias", None),
    ("params", "scale"): ("weight", None),
    ("params", "embedding"): ("embedding.weight", None),
    ("batch_stats", "mean"): ("running_mean", None),
    ("batch_stats", "var"): ("running_var", None),
}

# BAAI name -> -hf name, one substitution after the other (transformers, modular_emu3.py).
HF_NAMES = (
    (r"\.(down|up)\.(\d+)\.", r".\1_block.\1.\2."),
    (r"\.mid\.attn_1\.norm\.", r".middle_block.attn_norm."),
    (r"\.mid\.", r".middle_block."),
    (r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1."),
    (r"\.(q|k|v)\.(weight|bias)$", r".\1_proj.\2"),
    (r"\.proj_out\.", r".out_proj."),
)
# Attention projections are linear layers in -hf, 1x1 convolutions in BAAI's file.
HF_LINEAR = r"\.(q|k|v|proj_out)\.weight$"
# Prefixes of the names: in a saved -hf model of both parts, in the class in memory, and in a vision
# tokenizer alone.
HF_PREFIXES = ("vqmodel.", "model.vqmodel.", "")
# A counter that torch stores with every BatchNorm. It is unused if the momentum is a number, as it
# is here, so it is not a variable of this package and is written as 0.
COUNTER = "num_batches_tracked"
# An array of every tokenizer; its type is the type of the file.
TYPED_BY = ("params", "quant_conv", "conv", "kernel")


@dataclasses.dataclass(frozen=True)
class Pair:
    """One array: its path here, its name in the file, and both shapes.

    Attributes:
      path, shape: path and shape here.
      name: name in the file.
      axes: axes of the file's array in the order used here, None if they agree.
      linear: the file has (out, in) for a 1x1 convolution here.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    name: str
    axes: tuple[int, ...] | None
    linear: bool = False

    @property
    def _torch_shape(self) -> tuple[int, ...]:
        if self.axes is None:
            return self.shape
        return tuple(self.shape[i] for i in np.argsort(self.axes))

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Shape of the array in the file."""
        return self._torch_shape[:2] if self.linear else self._torch_shape

    def from_file(self, array: np.ndarray) -> np.ndarray:
        """The file's array with the axes in the order used here."""
        array = array.reshape(self._torch_shape)
        return array if self.axes is None else np.ascontiguousarray(array.transpose(self.axes))

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """An array with the axes in the file's order."""
        if self.axes is not None:
            array = array.transpose(np.argsort(self.axes))
        return np.ascontiguousarray(array.reshape(self.file_shape))


def abstract_variables(config: VisionTokenizerConfig) -> dict:
    """Shapes and dtypes of {"params": …, "batch_stats": …}, boxed with their logical axis names."""
    side = config.spatial_factor
    still = jax.ShapeDtypeStruct((1, side, side, config.in_channels), jnp.float32)
    return jax.eval_shape(VisionTokenizer(config).init, jax.random.key(0), still)


@functools.lru_cache(maxsize=8)
def key_map(config: VisionTokenizerConfig) -> tuple[Pair, ...]:
    """Every array of a tokenizer with this config and its name in the released layout."""
    variables = abstract_variables(config)
    pairs = []
    for path, array in flax.traverse_util.flatten_dict(nn.unbox(variables)).items():
        collection, *modules, leaf = path
        name, axes = LEAVES[collection, leaf]
        module = "/".join(modules)
        for pattern, replacement in MODULES:
            module = re.sub(pattern, replacement, module)
        pairs.append(Pair(path, array.shape, f"{module}.{name}", axes and axes[len(array.shape)]))
    return tuple(pairs)


def hf_key_map(config: VisionTokenizerConfig, prefix: str = HF_PREFIXES[0]) -> tuple[Pair, ...]:
    """The same with the names and shapes of the -hf layout."""
    pairs = []
    for pair in key_map(config):
        name = pair.name
        for pattern, replacement in HF_NAMES:
            name = re.sub(pattern, replacement, name)
        linear = bool(re.search(HF_LINEAR, pair.name))
        pairs.append(dataclasses.replace(pair, name=prefix + name, linear=linear))
    return tuple(pairs)


def counters(pairs: tuple[Pair, ...]) -> list[str]:
    """Names of the BatchNorm counters in the file."""
    suffix = ".running_mean"
    return [p.name.removesuffix(suffix) + "." + COUNTER for p in pairs if p.name.endswith(suffix)]


def pairs_in(
    path: str | os.PathLike, config: VisionTokenizerConfig, tensors: Tensors
) -> tuple[Pair, ...]:
    """The pairs with the names in a directory of either layout, after all checks.

    Raises:
      ValueError: lists the arrays that are missing, unexpected or of another shape.
    """
    names = tensors.shapes()
    hf = is_hf(path)
    prefix = _hf_prefix(names) if hf else ""
    pairs = hf_key_map(config, prefix) if hf else key_map(config)
    beside = [name for name in names if not name.startswith(prefix)]  # the language model
    expected = {pair.name: pair.file_shape for pair in pairs}
    tensors.check(expected, optional=[*counters(pairs), *beside])
    return pairs


def load(
    path: str | os.PathLike, mesh: jax.sharding.Mesh | None = None
) -> tuple[VisionTokenizerConfig, dict]:
    """Config and weights of a directory in BAAI's or the -hf layout, read array by array.

    Args:
      path: directory with config.json and weights in one safetensors file or several with an index,
        of any floating type.
      mesh: devices for the weights, by the rules of `sharding`; None leaves them on the host.

    Returns:
      (config, {"params": ..., "batch_stats": ...}) in float32: jax arrays laid out over the mesh,
      or numpy arrays.

    Raises:
      ValueError: a file is missing or unreadable, arrays are missing, unexpected or of another
        shape (one message lists all), or the mesh does not divide a size.
    """
    config = read_tokenizer_config(path)
    destination = None if mesh is None else OntoMesh(_on_mesh(config, mesh))
    tensors, flat = Tensors(path), {}
    for pair in pairs_in(path, config, tensors):
        array = pair.from_file(tensors.read(pair.name).astype(np.float32))
        if destination is None:
            flat[pair.path] = array
        else:
            destination.write(pair.path, None, array)
    return config, flax.traverse_util.unflatten_dict(flat or destination.arrays)


def _hf_prefix(names: Collection[str]) -> str:
    """The prefix of the names in the file, taken from the codebook's name."""
    found = [prefix for prefix in HF_PREFIXES if f"{prefix}quantize.embedding.weight" in names]
    return (found or HF_PREFIXES)[0]


def _on_mesh(config: VisionTokenizerConfig, mesh) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    abstract = sharding.abstract_arrays(abstract_variables(config), mesh, np.dtype("float32"))
    return flax.traverse_util.flatten_dict(abstract)


def save(
    path: str | os.PathLike,
    config: VisionTokenizerConfig,
    variables: dict,
    dtype: str = "float32",
) -> None:
    """Writes a directory in the released layout, each file under a temporary name first.

    Args:
      path: directory, created if needed.
      config: config of the variables.
      variables: {"params": ..., "batch_stats": ...}, arrays plain or boxed with their axis names.
      dtype: a name in DTYPES, or SAME for the arrays' own; BatchNorm's statistics stay float32.

    Raises:
      ValueError: the variables do not fit the config, or the dtype is unknown.
    """
    write_tensors(path, file_tensors(config, variables, dtype, key_map(config)))
    write_released(path, config, dtype_name(variables, dtype))


def dtype_name(variables: dict, dtype: str) -> str:
    """The type for config.json: `dtype`, or that of the arrays for SAME."""
    if dtype != SAME:
        return dtype
    return flax.traverse_util.flatten_dict(nn.unbox(dict(variables)))[TYPED_BY].dtype.name


def file_tensors(
    config: VisionTokenizerConfig, variables: dict, dtype: str, pairs: tuple[Pair, ...]
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of everything in a file with these pairs; errors as `save`, before the first.

    Arrays are made lazily.
    """
    check_dtype(dtype)
    flat = flax.traverse_util.flatten_dict(nn.unbox(dict(variables)))
    _check_variables(flat, key_map(config))
    arrays = ((p.name, p.to_file(np.asarray(flat[p.path])), p) for p in pairs)
    typed = ((name, as_type(array, pair_dtype(pair, dtype))) for name, array, pair in arrays)
    return itertools.chain(((name, np.zeros((), np.int64)) for name in counters(pairs)), typed)


def pair_dtype(pair: Pair, dtype: str) -> str:
    """The type of one array in a file of `dtype`: statistics need full precision."""
    return "float32" if dtype != SAME and pair.path[0] == "batch_stats" else dtype


def load_module(
    path: str | os.PathLike, mesh: jax.sharding.Mesh | None = None
) -> tuple[VisionTokenizer, dict]:
    """(module, variables) of a directory in either layout; arguments and errors as `load`."""
    config, variables = load(path, mesh)
    return VisionTokenizer(config), variables


def _check_variables(flat: dict, pairs: tuple[Pair, ...]) -> None:
    """ValueError that lists all differences between the variables and the config."""
    expected = {"/".join(pair.path): pair.shape for pair in pairs}
    problems = differences({"/".join(p): np.shape(array) for p, array in flat.items()}, expected)
    if problems:
        raise ValueError(f"the variables do not fit the config: {'; '.join(problems)}.")
