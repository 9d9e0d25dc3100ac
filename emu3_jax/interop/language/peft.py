"""Low-rank adapters in PEFT's files: adapter_config.json and adapter_model.safetensors.

PEFT names a tensor after the layer that it adapts, "base_model.model." + the layer's name in the
base model + ".lora_A.weight" or ".lora_B.weight". The layouts follow from those of the kernels in
`language_model.key_map`: A is (rank, in), B is (out, rank).

Vectors that are trained whole (`lora.rows`) are PEFT's `trainable_token_indices`, since its version
0.15: the settings list the ids for embed_tokens and for lm_head, and each of the two has a tensor
".token_adapter.trainable_tokens_delta" (ids, hidden size). Whatever its name says, it holds the
vectors themselves, not what is added to the base.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import flax.traverse_util
import numpy as np

from emu3_jax.files import read_json, write_json
from emu3_jax.interop.formats.safetensors_io import (
    ADAPTER_CONFIG_FILE,
    differences,
    read_file,
    write_file,
)
from emu3_jax.interop.language.language_model import HF_NAMES, Pair, key_map
from emu3_jax.models.language.lora import ADAPTER_DTYPE, EMBEDDING, HEAD, ROWS, LoraConfig
from emu3_jax.models.language.lora import A as LORA_A
from emu3_jax.models.language.lora import B as LORA_B
from emu3_jax.models.language.transformer import TransformerConfig

WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
# Written by this package beside PEFT's files, which name the base but do not identify it.
BASE_FILE = "base_fingerprint.json"
PREFIX = "base_model.model."
# Settings of PEFT that change what an adapter means, and their values in a plain one.
PLAIN = {
    "peft_type": ("LORA",),
    "use_dora": (False,),
    "bias": ("none",),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "modules_to_save": (None, []),
    "layer_replication": (None,),
}
# PEFT's word for an adapter without A and B; it refuses an empty list.
NO_MODULES = "dummy-target-modules"
TOKENS = "trainable_token_indices"
TOKENS_TENSOR = "token_adapter.trainable_tokens_delta"
# Layers that may have it, and their keys here.
TOKEN_LAYERS = {"embed_tokens": EMBEDDING[0], "lm_head": HEAD[0]}


class PeftAdapter(NamedTuple):
    """An adapter as PEFT stores it.

    Attributes:
      rank, alpha, rslora: as in LoraConfig.
      adapters: tree of A and B, float32 numpy arrays, as the model of its config has them.
      rows: as in LoraConfig.
      vectors: those of the ids in `rows`, whole, as `lora.row_vectors` gives them; of the embedding
        or the output matrix alone if the files have only one of them.
      base: fingerprint of the weights that it was trained beside; "" if the files do not say.
    """

    rank: int
    alpha: float
    rslora: bool
    adapters: dict
    rows: tuple[int, ...]
    vectors: dict
    base: str


def load(path: str | os.PathLike, model: TransformerConfig) -> PeftAdapter:
    """Reads a directory of PEFT.

    Args:
      path: holds adapter_config.json and adapter_model.safetensors.
      model: the base model.

    Raises:
      ValueError: a file is missing or a pickle, a setting is not supported, or tensors are missing,
        unexpected or of other shapes (those of another rank or base).
    """
    path = pathlib.Path(path)
    stated = _settings(path)
    tensors = _tensors(path)
    orders = _token_orders(path / ADAPTER_CONFIG_FILE, stated, model.vocab_size)
    rows, ids = (), next(iter(orders.values()), ())
    if len(ids):
        rows = (int(min(ids)), int(max(ids)) + 1)
    pairs = _pairs_in(path, model, stated["r"], tensors, dict.fromkeys(orders, len(ids)))
    vectors: dict[tuple[str, ...], np.ndarray] = {}
    flat: dict[tuple[str, ...], np.ndarray] = {}
    for pair in pairs:
        array = _padded(pair.from_file(tensors[pair.name]).astype(ADAPTER_DTYPE), pair, model)
        if pair.path[-1] == ROWS:
            axis = pair.dims.split().index(ROWS)
            vectors[pair.path] = array.take(np.argsort(orders[pair.path[0]]), axis)
        elif pair.path[0] == "layers":
            stack = flat.setdefault(pair.path, np.zeros((model.num_layers, *array.shape), "f4"))
            stack[pair.layer] = array
        else:
            flat[pair.path] = array
    base = path / BASE_FILE
    fingerprint = read_json(base)["fingerprint"] if base.exists() else ""
    adapters, vectors = map(flax.traverse_util.unflatten_dict, (flat, vectors))
    settings = (stated["r"], float(stated["lora_alpha"]), bool(stated.get("use_rslora", False)))
    return PeftAdapter(*settings, adapters, rows, vectors, fingerprint)


def _token_orders(file: pathlib.Path, stated: dict, vocab_size: int) -> dict[str, list[int]]:
    """Layer here → its ids in the order of the file; ValueError if `lora.rows` cannot mean them."""
    found = stated.get(TOKENS) or {}
    found = {"embed_tokens": found} if isinstance(found, list) else found
    if not isinstance(found, dict) or set(found) - set(TOKEN_LAYERS):
        raise ValueError(
            f"{file}: {TOKENS} is for {', '.join(map(str, found))}, expected ids of "
            f"{' and '.join(TOKEN_LAYERS)}"
        )
    for layer, ids in found.items():
        if not isinstance(ids, list) or not ids or any(type(i) is not int for i in ids):
            raise ValueError(f"{file}: {TOKENS} of {layer} is not a list of ids")
        if sorted(ids) != list(range(min(ids), max(ids) + 1)) or not 0 <= max(ids) < vocab_size:
            raise ValueError(
                f"{file}: {TOKENS} of {layer} are {len(ids)} ids from {min(ids)} to {max(ids)}; "
                f"expected a range without gaps or repeats, below {vocab_size}"
            )
    if len({tuple(sorted(ids)) for ids in found.values()}) > 1:
        raise ValueError(f"{file}: {TOKENS} are other ids for embed_tokens than for lm_head")
    return {TOKEN_LAYERS[layer]: ids for layer, ids in found.items()}


def _settings(path: pathlib.Path) -> dict:
    file = path / ADAPTER_CONFIG_FILE
    stated = read_json(file)
    problems = [
        f"{name} is {stated[name]!r}, expected {' or '.join(map(repr, values))}"
        for name, values in PLAIN.items()
        if name in stated and stated[name] not in values
    ]
    rank, alpha = stated.get("r"), stated.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        problems.append(f"r is {rank!r}, expected a whole number above zero")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or alpha <= 0:
        problems.append(f"lora_alpha is {alpha!r}, expected a number above zero")
    if problems:
        raise ValueError(f"{file}: {'; '.join(problems)}")
    return stated


def _tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    if not (path / WEIGHTS_FILE).exists() and (path / PICKLE_FILE).exists():
        raise ValueError(
            f"{path} has its weights in {PICKLE_FILE}, a pickle, which may run any code when it is "
            f"read; expected {WEIGHTS_FILE} (PEFT writes it with safe_serialization=True)"
        )
    return read_file(path / WEIGHTS_FILE)


def _pairs_in(
    path: pathlib.Path,
    model: TransformerConfig,
    rank: int,
    tensors: dict[str, np.ndarray],
    rows: dict[str, int],
) -> list[Pair]:
    """The pairs with the names of either layout of the base; raises if they do not fit."""
    every = adapter_pairs(model, rank, rows)
    # The output matrix has one name in two of the layouts: the one that fits best, BAAI's if none.
    layouts = [[_renamed(pair, rename) for pair in every] for rename in reversed(HF_NAMES)]
    named = max(layouts, key=lambda pairs: len({pair.name for pair in pairs} & tensors.keys()))
    # An adapter covers some kinds of layers, each in the whole stack.
    found = {pair.path[:-1] for pair in named if pair.path[-1] != ROWS and pair.name in tensors}
    pairs = [pair for pair in named if pair.path[-1] == ROWS or pair.path[:-1] in found]
    shapes = {name: array.shape for name, array in tensors.items()}
    problems = differences(shapes, {pair.name: pair.file_shape for pair in pairs})
    if not pairs and not problems:
        problems = ["it has no tensors"]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"{path / WEIGHTS_FILE} does not fit rank {rank} beside this base model: "
            f"{'; '.join(problems[:3])}{more}"
        )
    return pairs


def _renamed(pair: Pair, rename: tuple[str, str]) -> Pair:
    inside = re.sub(*rename, pair.name.removeprefix(PREFIX))
    return dataclasses.replace(pair, name=PREFIX + inside)


def adapter_pairs(
    model: TransformerConfig, rank: int, rows: Mapping[str, int] | None = None
) -> list[Pair]:
    """A and B of every linear layer of a model, with the names of a base in BAAI's layout.

    `rows`: layer of TOKEN_LAYERS, as here → number of its vectors that are trained whole.
    """
    pairs = []
    for pair in key_map(model):
        if count := (rows or {}).get(pair.path[0]):
            name = PREFIX + pair.name.removesuffix("weight") + TOKENS_TENSOR
            dims = pair.dims.replace("vocab", ROWS)
            sizes = pair.sizes | {ROWS: count}
            pairs.append(Pair(name, (pair.path[0], ROWS), None, f"{ROWS} embed", dims, sizes))
        if pair.path[-1] != "kernel":
            continue
        out, into = pair.file_dims.split()
        sizes = pair.sizes | {"rank": rank}
        layer = PREFIX + pair.name.removesuffix(".weight")
        for letter, leaf, file_dims, dims in (
            ("A", LORA_A, f"rank {into}", f"{into.replace('*', ' ')} rank"),
            ("B", LORA_B, f"{out} rank", f"rank {out.replace('*', ' ')}"),
        ):
            name, path = f"{layer}.lora_{letter}.weight", (*pair.path[:-1], leaf)
            pairs.append(Pair(name, path, pair.layer, file_dims, dims, sizes))
    return pairs


def _padded(array: np.ndarray, pair: Pair, model: TransformerConfig) -> np.ndarray:
    """The array with the columns of the vocabulary's padding, zeros."""
    if pair.dims.split()[-1] != "vocab":
        return array
    return np.pad(array, [(0, 0), (0, model.padded_vocab_size - model.vocab_size)])


def save(
    path: str | os.PathLike,
    model: TransformerConfig,
    config: LoraConfig,
    adapters: dict,
    vectors: dict,
    *,
    base_model: str,
    fingerprint: str,
) -> None:
    """Writes a directory that PEFT loads beside the base in BAAI's layout.

    Args:
      path: an existing directory.
      model: the base model.
      config: rank, scale and rows.
      adapters: tree of A and B, whole arrays.
      vectors: the result of `lora.row_vectors`.
      base_model: where the base lies, for PEFT.
      fingerprint: of the base's weights.
    """
    flat = flax.traverse_util.flatten_dict(adapters) | flax.traverse_util.flatten_dict(vectors)
    tensors = {}
    for pair in adapter_pairs(model, config.rank, _counts(config)):
        if pair.path in flat:
            array = np.asarray(flat[pair.path])
            array = array[pair.layer] if pair.path[0] == "layers" else array
            tensors[pair.name] = np.ascontiguousarray(pair.to_file(array).astype(ADAPTER_DTYPE))
    path = pathlib.Path(path)
    write_file(path / WEIGHTS_FILE, tensors, path)
    write_json(path / BASE_FILE, {"fingerprint": fingerprint})
    write_json(path / ADAPTER_CONFIG_FILE, _stated(config, tensors, base_model))


def _counts(config: LoraConfig) -> dict[str, int]:
    return dict.fromkeys(TOKEN_LAYERS.values(), len(range(*config.rows))) if config.rows else {}


def _stated(config: LoraConfig, names: Iterable[str], base_model: str) -> dict:
    """The fields of adapter_config.json."""
    modules = sorted({name.split(".")[-3] for name in names if TOKENS_TENSOR not in name})
    alpha = int(config.alpha) if float(config.alpha).is_integer() else config.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": config.rank,
        "lora_alpha": alpha,
        "use_rslora": config.rslora,
        "lora_dropout": 0.0,
        "target_modules": modules or NO_MODULES,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_dora": False,
    } | ({TOKENS: dict.fromkeys(TOKEN_LAYERS, list(range(*config.rows)))} if config.rows else {})
