"""Vision tokenizer weights as BAAI and the -hf conversions keep them: config.json and safetensors.

The layouts are data: `MODULES` rewrites the path of a module, `LEAVES` names its arrays and says
how their axes move, `HF_NAMES` makes a BAAI name an -hf one. They are read from our side: the
config fixes every array of the model, each array has one name and one shape in the file, and that
one list of pairs serves loading, saving and the report of what does not fit.
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Collection

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from emu3_jax.interop.safetensors_io import (
    Tensors,
    differences,
    read_json,
    write_json,
    write_tensors,
)
from emu3_jax.models.vision_config import VisionTokenizerConfig
from emu3_jax.models.vision_tokenizer import VisionTokenizer

CONFIG_FILE = "config.json"

# Path of a module here -> its name in the file, one substitution after the other.
MODULES = (
    (r"(down|up)_(\d+)/(block|attn)_(\d+)", r"\1.\2.\3.\4"),
    (r"(down|up)_(\d+)/(downsample|upsample)", r"\1.\2.\3"),
    (r"(time_conv|time_res_stack)_(\d+)", r"\1.\2"),
    (r"/", r"."),
)

# (collection, array) -> (name in the file, axes of the file's array in the order of ours).
# Convolutions: torch keeps (out, in, *kernel), we keep (*kernel, in, out).
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
# The projections of attention are linear layers there, 1x1 convolutions in BAAI's file.
HF_LINEAR = r"\.(q|k|v|proj_out)\.weight$"
# What stands before the names: in a model of both parts, as an -hf save writes it and as the
# class in memory has it, and in a vision tokenizer alone.
HF_PREFIXES = ("vqmodel.", "model.vqmodel.", "")
# Field of an -hf vq_config -> field of VisionTokenizerConfig, where the names differ.
HF_CONFIG_KEYS = {
    "base_channels": "ch",
    "channel_multiplier": "ch_mult",
    "latent_channels": "z_channels",
    "double_latent": "double_z",
}

# A counter torch stores with every BatchNorm. Nothing reads it while the momentum is a number, as
# it is here; it is written as 0 so that torch finds the key.
COUNTER = "num_batches_tracked"

# Config fields that describe computation rather than weights; a file has none of them.
_NOT_STORED = ("dtype", "param_dtype")
_STORED_CONSTANTS = {
    "double_z": False,
    "model_type": "Emu3VisionVQ",
    "architectures": ["Emu3VisionVQModel"],
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """One array: its path here, its name in the file, and both shapes.

    Attributes:
      path, shape: here.
      name: in the file.
      axes: axes of the file's array in the order of ours, None where they agree.
      linear: the file has (out, in) where we have a 1x1 convolution.
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
        """The file's array with the axes in our order."""
        array = array.reshape(self._torch_shape)
        return array if self.axes is None else np.ascontiguousarray(array.transpose(self.axes))

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """Our array with the axes in the file's order."""
        if self.axes is not None:
            array = array.transpose(np.argsort(self.axes))
        return np.ascontiguousarray(array.reshape(self.file_shape))


@functools.lru_cache(maxsize=8)
def key_map(config: VisionTokenizerConfig) -> tuple[Pair, ...]:
    """Every array of a tokenizer with this config and its name in the released layout."""
    still = jax.ShapeDtypeStruct(
        (1, config.spatial_factor, config.spatial_factor, config.in_channels), jnp.float32
    )
    variables = jax.eval_shape(VisionTokenizer(config).init, jax.random.key(0), still)
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
    """Names of the BatchNorm counters that stand beside the arrays in the file."""
    suffix = ".running_mean"
    return [p.name.removesuffix(suffix) + "." + COUNTER for p in pairs if p.name.endswith(suffix)]


def is_hf(stored: dict) -> bool:
    """Whether a config.json is one of transformers, of a whole model or a vision tokenizer."""
    return stored.get("model_type") in ("emu3", "emu3_vqgan")


def read_config(path: str | os.PathLike) -> VisionTokenizerConfig:
    """The config of a directory in the released layout; ValueError if it is not one."""
    file = pathlib.Path(path) / CONFIG_FILE
    stored = read_json(file)
    if is_hf(stored):
        stored = stored.get("vq_config", stored)
        stored = {HF_CONFIG_KEYS.get(key, key): value for key, value in stored.items()}
    elif stored.get("model_type") != "Emu3VisionVQ":
        raise ValueError(
            f'{file}: expected model_type "Emu3VisionVQ", or "emu3" or "emu3_vqgan" of an -hf '
            f"conversion, found {stored.get('model_type')!r}."
        )
    if stored.get("double_z"):
        raise ValueError(
            f"{file}: double_z must be false; this quantizer reads one set of latents."
        )
    names = [f.name for f in dataclasses.fields(VisionTokenizerConfig)]
    fields = {name: stored[name] for name in names if name in stored and name not in _NOT_STORED}
    try:
        return VisionTokenizerConfig(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error


def load(path: str | os.PathLike) -> tuple[VisionTokenizerConfig, dict]:
    """Config and weights of a directory in the released layout.

    Args:
      path: directory with config.json and weights in one safetensors file or several with an index,
        of any floating type.

    Returns:
      (config, {"params": ..., "batch_stats": ...}) of float32 numpy arrays.

    Raises:
      ValueError: a file is missing or unreadable, or arrays are missing, unexpected or of another
        shape; all of those are listed.
    """
    config = read_config(path)
    hf = is_hf(read_json(pathlib.Path(path) / CONFIG_FILE))
    stored = Tensors(path)
    names = stored.shapes()
    prefix = _hf_prefix(names) if hf else ""
    pairs = hf_key_map(config, prefix) if hf else key_map(config)
    beside = [name for name in names if not name.startswith(prefix)]  # the language model
    expected = {pair.name: pair.file_shape for pair in pairs}
    stored.check(expected, optional=[*counters(pairs), *beside])
    flat = {p.path: p.from_file(stored.read(p.name).astype(np.float32)) for p in pairs}
    return config, flax.traverse_util.unflatten_dict(flat)


def _hf_prefix(names: Collection[str]) -> str:
    """What stands before the names of the file, judged by the codebook's."""
    found = [prefix for prefix in HF_PREFIXES if f"{prefix}quantize.embedding.weight" in names]
    return (found or HF_PREFIXES)[0]


def save(
    path: str | os.PathLike,
    config: VisionTokenizerConfig,
    variables: dict,
    dtype: str = "float32",
) -> None:
    """Writes a directory in the released layout, each file under a temporary name first.

    Args:
      path: directory, created if need be.
      config: what the variables were made with.
      variables: {"params": ..., "batch_stats": ...}, arrays plain or boxed with their axis names.
      dtype: "float32" or "bfloat16"; BatchNorm's statistics stay float32.

    Raises:
      ValueError: the variables are not those of this config, or the dtype is neither.
    """
    tensors = file_tensors(config, variables, dtype, key_map(config))
    stored = dataclasses.asdict(config)
    for name in _NOT_STORED:
        del stored[name]
    if config.norm_groups == 32:  # the released value, for which the released file has no key
        del stored["norm_groups"]
    write_tensors(path, tensors.items())
    write_json(
        pathlib.Path(path) / CONFIG_FILE, stored | _STORED_CONSTANTS | {"torch_dtype": dtype}
    )


def file_tensors(
    config: VisionTokenizerConfig, variables: dict, dtype: str, pairs: tuple[Pair, ...]
) -> dict[str, np.ndarray]:
    """Name → array of everything in a file with these pairs; errors as `save`."""
    types = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
    if dtype not in types:
        raise ValueError(f"dtype must be one of {', '.join(types)}, found {dtype!r}.")
    flat = flax.traverse_util.flatten_dict(nn.unbox(dict(variables)))
    _check_variables(flat, key_map(config))
    tensors = {name: np.zeros((), np.int64) for name in counters(pairs)}
    for pair in pairs:
        stored_type = types[dtype] if pair.path[0] == "params" else np.float32
        tensors[pair.name] = pair.to_file(np.asarray(flat[pair.path])).astype(stored_type)
    return tensors


def load_vision_tokenizer(path: str | os.PathLike) -> tuple[VisionTokenizer, dict]:
    """(module, variables) of a directory in the released layout; errors as `load`."""
    config, variables = load(path)
    return VisionTokenizer(config), variables


def _check_variables(flat: dict, pairs: tuple[Pair, ...]) -> None:
    """ValueError that lists everything in which the variables differ from the config."""
    expected = {"/".join(pair.path): pair.shape for pair in pairs}
    problems = differences({"/".join(p): np.shape(array) for p, array in flat.items()}, expected)
    if problems:
        raise ValueError(f"the variables do not fit the config: {'; '.join(problems)}.")
