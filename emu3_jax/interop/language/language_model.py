"""Language model weights in BAAI's and the -hf layout: config.json and safetensors.

The layout is data: `KEYS` and `LAYER_KEYS` give each tensor its name in the file, its path here,
and the meaning of its dimensions on both sides. Shapes, transposes and the report of misfits all
follow from them.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable, Iterator

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from emu3_jax import sharding
from emu3_jax.files import read_json
from emu3_jax.interop.formats.onto_mesh import OntoMesh, RoundedOntoMesh
from emu3_jax.interop.formats.safetensors_io import (
    CONFIG_FILE,
    DTYPES,
    SAME,
    Tensors,
    as_type,
    check_dtype,
    differences,
    write_tensors,
)
from emu3_jax.interop.language.language_config import is_hf, read_transformer_config, write_released
from emu3_jax.models.language import int8
from emu3_jax.models.language.transformer import Transformer, TransformerConfig

# Name in the file, path here, dimensions in the file, dimensions here. The file's linear layers
# are (out, in); "heads*head_dim" is one dimension of the file that is two here.
KEYS = (
    ("model.embed_tokens.weight", "embed/embedding", "vocab embed", "vocab embed"),
    ("model.norm.weight", "final_norm/scale", "embed", "embed"),
    ("lm_head.weight", "lm_head/kernel", "vocab embed", "embed vocab"),
)
# The same inside a layer, after "model.layers.{i}." in the file and "layers/" here.
LAYER_KEYS = (
    ("input_layernorm.weight", "attention_norm/scale", "embed", "embed"),
    (
        "self_attn.q_proj.weight",
        "attention/query/kernel",
        "heads*head_dim embed",
        "embed heads head_dim",
    ),
    (
        "self_attn.k_proj.weight",
        "attention/key/kernel",
        "kv_heads*head_dim embed",
        "embed kv_heads head_dim",
    ),
    (
        "self_attn.v_proj.weight",
        "attention/value/kernel",
        "kv_heads*head_dim embed",
        "embed kv_heads head_dim",
    ),
    (
        "self_attn.o_proj.weight",
        "attention/output/kernel",
        "embed heads*head_dim",
        "heads head_dim embed",
    ),
    ("post_attention_layernorm.weight", "mlp_norm/scale", "embed", "embed"),
    ("mlp.gate_proj.weight", "gate/kernel", "mlp embed", "embed mlp"),
    ("mlp.up_proj.weight", "up/kernel", "mlp embed", "embed mlp"),
    ("mlp.down_proj.weight", "down/kernel", "embed mlp", "mlp embed"),
)

# BAAI name -> -hf name, as one substitution: in a saved whole model, in the class in memory, and in
# a text model alone.
HF_NAMES = ((r"^", "text_model."), (r"^model\.", "model.text_model."), (r"^", ""))


# Said of weights that are to be quantized.
ALREADY = "has quantized weights already; int8 is made from floats"

# Tensors that old conversions store and every loader computes.
COMPUTED = ".rotary_emb.inv_freq"


@dataclasses.dataclass(frozen=True)
class Pair:
    """One tensor of the file and its path here; neither side counts vocabulary padding."""

    name: str
    path: tuple[str, ...]
    layer: int | None
    file_dims: str
    dims: str
    sizes: dict[str, int]

    @property
    def _flat_dims(self) -> list[str]:
        return self.file_dims.replace("*", " ").split()

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Shape in the file."""
        merged = [dim.split("*") for dim in self.file_dims.split()]
        return tuple(int(np.prod([self.sizes[d] for d in dims])) for dims in merged)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape here, without the layer axis and without vocabulary padding."""
        return tuple(self.sizes[dim] for dim in self.dims.split())

    def from_file(self, array: np.ndarray) -> np.ndarray:
        """The file's tensor with the dimensions used here."""
        order = [self._flat_dims.index(dim) for dim in self.dims.split()]
        return array.reshape([self.sizes[dim] for dim in self._flat_dims]).transpose(order)

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """The array used here (padding included) in the form of the file."""
        array = array[tuple(slice(0, size) for size in self.shape)]
        order = [self.dims.split().index(dim) for dim in self._flat_dims]
        return array.transpose(order).reshape(self.file_shape)


def key_map(config: TransformerConfig) -> list[Pair]:
    """Every tensor of a model of this config: its name and shape in the file and its path here."""
    sizes = {
        "vocab": config.vocab_size,
        "embed": config.hidden_size,
        "mlp": config.intermediate_size,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
    }
    pairs = [
        Pair(name, tuple(path.split("/")), None, file_dims, dims, sizes)
        for name, path, file_dims, dims in KEYS
    ]
    for i in range(config.num_layers):
        root = "layers" if config.scan_layers else f"layers_{i}"
        pairs += [
            Pair(f"model.layers.{i}.{name}", (root, *path.split("/")), i, file_dims, dims, sizes)
            for name, path, file_dims, dims in LAYER_KEYS
        ]
    return pairs


def hf_key_map(config: TransformerConfig, rename: tuple[str, str] = HF_NAMES[0]) -> list[Pair]:
    """The same with -hf names, by one of HF_NAMES."""
    return [dataclasses.replace(pair, name=re.sub(*rename, pair.name)) for pair in key_map(config)]


def pairs_in(path: str | os.PathLike, config: TransformerConfig, tensors: Tensors) -> list[Pair]:
    """The pairs with the names in a directory of either layout, after all checks.

    Raises:
        ValueError: lists the tensors that are missing, unexpected or mis-shaped.
    """
    pairs, beside = named_pairs(path, config, tensors)
    tensors.check({pair.name: pair.file_shape for pair in pairs}, optional=beside)
    return pairs


def named_pairs(
    path: str | os.PathLike, config: TransformerConfig, tensors: Tensors
) -> tuple[list[Pair], list[str]]:
    """The same without checks, and the names of other tensors that the file may hold.

    These are the other half of a whole -hf model, and tensors that every loader computes.
    """
    names = tensors.shapes()
    beside = [name for name in names if name.endswith(COMPUTED)]
    if not is_hf(path):
        return key_map(config), beside
    # The -hf names under which the file has the embedding.
    candidates = [hf_key_map(config, rename) for rename in HF_NAMES]
    pairs = next((pairs for pairs in candidates if pairs[0].name in names), candidates[0])
    return pairs, beside + [name for name in names if "vqmodel." in name]


def load(
    path: str | os.PathLike,
    param_dtype: str = "float32",
    mesh: jax.sharding.Mesh | None = None,
    quantized: bool = False,
) -> tuple[TransformerConfig, dict]:
    """Config and weights of a directory in BAAI's or the -hf layout.

    Args:
        path: holds config.json and model.safetensors, or several files with their index.
        param_dtype: a name in DTYPES; the file's type is converted.
        mesh: devices for the weights, by the rules of `sharding`; None leaves them on the host.
        quantized: needs a mesh. Kernels of the layers are int8 (`models.language.int8`), rounded
            from `param_dtype` one by one.

    Returns:
        (config, params): layers stacked, vocabulary rows padded with zeros; jax arrays laid out
        over the mesh, or numpy arrays.

    Raises:
        ValueError: a file is missing or unreadable, a config field is not supported, tensors are
            missing, unexpected or mis-shaped (one message lists all), the mesh does not divide a
            size, or weights to be quantized are so already.
    """
    if quantized and read_json(pathlib.Path(path) / CONFIG_FILE).get("quantization_config"):
        raise ValueError(f"{path} {ALREADY} (config.json has a quantization_config).")
    config = dataclasses.replace(read_transformer_config(path), param_dtype=param_dtype)
    # Shapes first, then one tensor at a time: 34 GB are never in memory twice.
    destination = _OnHost(config) if mesh is None else _destination(config, mesh, quantized)
    tensors = Tensors(path)
    for pair in pairs_in(path, config, tensors):
        layer = pair.layer if pair.path[0] == "layers" else None
        destination.write(pair.path, layer, pair.from_file(tensors.read(pair.name)))
    return config, flax.traverse_util.unflatten_dict(destination.arrays)


def quantized(config: TransformerConfig, params: dict, mesh: jax.sharding.Mesh) -> dict:
    """The weights of a loaded model with int8 kernels, moved to a mesh one kernel at a time.

    Args:
        config: of the model.
        params: unboxed, on any devices; with several processes, on all of them.
        mesh: where the result is.

    Raises:
        ValueError: kernels are int8 already.
    """
    if int8.is_stored_in(params):
        raise ValueError(f"The model {ALREADY}.")
    destination = _destination(config, mesh, True)
    for path, leaf in flax.traverse_util.flatten_dict(params).items():
        for layer in range(len(leaf)) if path[0] == "layers" else (None,):
            piece = leaf if layer is None else leaf[layer]
            destination.write(path, layer, sharding.to_host(piece))
    return flax.traverse_util.unflatten_dict(destination.arrays)


def _destination(config: TransformerConfig, mesh, quantized: bool) -> OntoMesh:
    if not quantized:
        return OntoMesh(_flat(abstract_variables(config)["params"], mesh))
    tokens = np.zeros((1, 1), np.int32)
    boxed = int8.abstract(lambda: Transformer(config).init(jax.random.key(0), tokens))
    return RoundedOntoMesh(_flat(boxed, mesh), config.param_dtype)


def _flat(boxed: dict, mesh) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    return flax.traverse_util.flatten_dict(sharding.abstract_arrays(boxed, mesh))


class _OnHost:
    """Numpy arrays, filled like those of OntoMesh."""

    def __init__(self, config: TransformerConfig):
        dtype = DTYPES[config.param_dtype]
        leaves = _abstract_params(config)
        self.arrays = {path: np.zeros(leaf.shape, dtype) for path, leaf in leaves.items()}

    def write(self, path: tuple[str, ...], layer: int | None, array: np.ndarray) -> None:
        target = self.arrays[path] if layer is None else self.arrays[path][layer]
        target[tuple(slice(0, size) for size in array.shape)] = array


def save(
    path: str | os.PathLike,
    config: TransformerConfig,
    params: dict,
    dtype: str = "float32",
    extra: dict | None = None,
) -> None:
    """Writes a directory in the released layout; each file is written atomically.

    Args:
        path: directory, created if needed.
        config: config of the params.
        params: arrays plain or boxed with their axis names, layers stacked or not as in config.
        dtype: a name in DTYPES, or SAME for the params' own.
        extra: further fields of config.json, such as max_position_embeddings, pad_token_id,
            bos_token_id, eos_token_id; the official code defaults to the released values.

    Raises:
        ValueError: the params do not fit the config, or the dtype is unknown.
    """
    write_tensors(path, file_tensors(config, params, dtype, key_map(config)))
    write_released(path, config, extra or {}, dtype_name(params, dtype))


def dtype_name(params: dict, dtype: str) -> str:
    """The type for config.json: `dtype`, or that of the embedding for SAME."""
    return nn.unbox(params["embed"])["embedding"].dtype.name if dtype == SAME else dtype


def file_tensors(
    config: TransformerConfig, params: dict, dtype: str, pairs: Iterable[Pair]
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of each pair, made lazily; errors as `save`, before the first."""
    check_dtype(dtype)
    flat = flax.traverse_util.flatten_dict(nn.unbox(dict(params)))
    _check_params(config, flat)

    def tensor(pair):
        array = flat[pair.path]
        array = array[pair.layer] if pair.path[0] == "layers" else array
        return pair.name, as_type(pair.to_file(np.asarray(array)), dtype)

    return map(tensor, pairs)


def load_module(
    path: str | os.PathLike, mesh: jax.sharding.Mesh | None = None
) -> tuple[Transformer, dict]:
    """(module, {"params": …}) of a directory, on `mesh` or the default device; errors as `load`."""
    mesh = mesh or sharding.one_device()
    config, params = load(path, mesh=mesh)
    return Transformer(config), {"params": params}


def abstract_variables(config: TransformerConfig) -> dict:
    """Shapes and dtypes of {"params": …}, boxed with their logical axis names."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens)


def _abstract_params(config: TransformerConfig) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    return flax.traverse_util.flatten_dict(nn.unbox(abstract_variables(config))["params"])


def _check_params(config: TransformerConfig, flat: dict) -> None:
    expected = {"/".join(path): leaf.shape for path, leaf in _abstract_params(config).items()}
    problems = differences({"/".join(p): np.shape(array) for p, array in flat.items()}, expected)
    if problems:
        raise ValueError(f"params do not fit the config: {'; '.join(problems)}")
