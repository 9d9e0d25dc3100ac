"""CLIP's weights from the user's own files, in any of three layouts.

  OpenAI        visual.transformer.resblocks.0.attn.in_proj_weight, … token_embedding.weight, …
  OpenCLIP      the same, the text's names also with "text." before them
  transformers  vision_model.encoder.layers.0.self_attn.q_proj.weight, … text_model.…, …

A folder is one of the hub: model.safetensors (or its index), or open_clip_model.safetensors, with a
config beside it. A file is safetensors or a pickle of torch.save, read without torch (such as
HPS_v2.1_compressed.pt). OpenAI's own .pt archives hold code and are refused; convert them first.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from emu3_jax.interop.formats import torch_pickle
from emu3_jax.interop.formats.safetensors_io import Tensors, differences, read_file
from emu3_jax.interop.vision import clip_config
from emu3_jax.interop.vision.clip_config import Settings
from emu3_jax.models.features.clip import ClipConfig, Tower

OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
# In OpenAI's files beside the weights, and in no others.
OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")
# Buffers that follow from the sizes.
BUFFERS = (
    *OPENAI_MARKS,
    "attn_mask",
    "text_model.embeddings.position_ids",
    "vision_model.embeddings.position_ids",
)


class Layout(NamedTuple):
    """Names of one layout.

    Attributes:
      layers: tower → prefix of its layers.
      weights: path in the tree → name, for everything outside of the layers.
      parts: part of a layer → names of its tensors, to be concatenated; {} is "weight" or "bias".
      linear_projections: whether the projections are stored as torch's Linear, [out, in].
    """

    layers: Mapping[str, str]
    weights: Mapping[str, str]
    parts: Mapping[str, tuple[str, ...]]
    linear_projections: bool


OPENAI = Layout(
    layers={"image": "visual.transformer.resblocks.", "text": "transformer.resblocks."},
    weights={
        "image.patches": "visual.conv1.weight",
        "image.class": "visual.class_embedding",
        "image.positions": "visual.positional_embedding",
        "image.norm_before.scale": "visual.ln_pre.weight",
        "image.norm_before.bias": "visual.ln_pre.bias",
        "image.norm_after.scale": "visual.ln_post.weight",
        "image.norm_after.bias": "visual.ln_post.bias",
        "image.projection": "visual.proj",
        "text.tokens": "token_embedding.weight",
        "text.positions": "positional_embedding",
        "text.norm_after.scale": "ln_final.weight",
        "text.norm_after.bias": "ln_final.bias",
        "text.projection": "text_projection",
        "logit_scale": "logit_scale",
    },
    parts={
        "norm1": ("ln_1.{}",),
        "qkv": ("attn.in_proj_{}",),
        "out": ("attn.out_proj.{}",),
        "norm2": ("ln_2.{}",),
        "up": ("mlp.c_fc.{}",),
        "down": ("mlp.c_proj.{}",),
    },
    linear_projections=False,
)
TRANSFORMERS = Layout(
    layers={"image": "vision_model.encoder.layers.", "text": "text_model.encoder.layers."},
    weights={
        "image.patches": "vision_model.embeddings.patch_embedding.weight",
        "image.class": "vision_model.embeddings.class_embedding",
        "image.positions": "vision_model.embeddings.position_embedding.weight",
        "image.norm_before.scale": "vision_model.pre_layrnorm.weight",
        "image.norm_before.bias": "vision_model.pre_layrnorm.bias",
        "image.norm_after.scale": "vision_model.post_layernorm.weight",
        "image.norm_after.bias": "vision_model.post_layernorm.bias",
        "image.projection": "visual_projection.weight",
        "text.tokens": "text_model.embeddings.token_embedding.weight",
        "text.positions": "text_model.embeddings.position_embedding.weight",
        "text.norm_after.scale": "text_model.final_layer_norm.weight",
        "text.norm_after.bias": "text_model.final_layer_norm.bias",
        "text.projection": "text_projection.weight",
        "logit_scale": "logit_scale",
    },
    parts={
        "norm1": ("layer_norm1.{}",),
        "qkv": ("self_attn.q_proj.{}", "self_attn.k_proj.{}", "self_attn.v_proj.{}"),
        "out": ("self_attn.out_proj.{}",),
        "norm2": ("layer_norm2.{}",),
        "up": ("mlp.fc1.{}",),
        "down": ("mlp.fc2.{}",),
    },
    linear_projections=True,
)


class Leaf(NamedTuple):
    """One array of the tree: where it is, the tensors it is made of and their common shape."""

    path: tuple[str, ...]
    names: tuple[str, ...]
    shape: tuple[int, ...]


def load(path: str | os.PathLike, activation: str = "") -> tuple[ClipConfig, dict]:
    """(config, tree of float32 numpy arrays) for `models.features.clip`.

    Args:
      path: a folder or a file, see the module docstring.
      activation: "quick_gelu" (OpenAI's models and OpenCLIP's of that name) or "gelu", for weights
        without a config beside them; "" takes what the config or OpenAI's marks say.

    Raises:
      ValueError: no such file; missing, surplus, mis-shaped or infinite tensors, all of them named;
        an activation that nothing states, or another one than the config's.
    """
    path = pathlib.Path(path)
    tensors = read(path)
    try:
        return of_tensors(tensors, path if path.is_dir() else path.parent, activation)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used as a CLIP: {error}") from error


def of_tensors(
    tensors: Mapping[str, np.ndarray], folder: pathlib.Path, activation: str = ""
) -> tuple[ClipConfig, dict]:
    """As `load`, of the tensors themselves; `folder` may have their config."""
    tensors = {_without_text(name): array for name, array in tensors.items()}
    layout = _layout(tensors)
    settings = _settings(folder, tensors, layout, activation)
    config = _config(tensors, layout, settings)
    return config, _tree(tensors, layout, config)


def read(path: pathlib.Path) -> Mapping[str, np.ndarray]:
    """Name → tensor of a folder or a file; ValueError if it cannot be read."""
    if path.is_dir():
        if (path / OPEN_CLIP_WEIGHTS).is_file():
            return read_file(path / OPEN_CLIP_WEIGHTS)
        tensors = Tensors(path)
        return {name: tensors.read(name) for name in tensors.shapes()}
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected the weights of a CLIP")
    return read_file(path) if path.suffix == ".safetensors" else torch_pickle.read(path)


def _without_text(name: str) -> str:
    """OpenCLIP's name without the part of its module for texts."""
    return name.removeprefix("text.")


def _layout(tensors: Mapping[str, np.ndarray]) -> Layout:
    for layout in (OPENAI, TRANSFORMERS):
        if layout.weights["image.patches"] in tensors:
            return layout
    raise ValueError(
        f"it has neither {OPENAI.weights['image.patches']} (OpenAI, OpenCLIP) nor "
        f"{TRANSFORMERS.weights['image.patches']} (transformers)"
    )


def _settings(
    folder: pathlib.Path, tensors: Mapping[str, np.ndarray], layout: Layout, activation: str
) -> Settings:
    widths = {tower: _shape(tensors, layout, f"{tower}.positions", 2)[1] for tower in layout.layers}
    found = clip_config.read(folder, widths)
    if all(name in tensors for name in OPENAI_MARKS):
        found = _replaced(clip_config.unstated(widths), "quick_gelu")
    if not activation and None in found.activation.values():
        raise ValueError(
            f"nothing states its activation, as {clip_config.TRANSFORMERS_FILE} or "
            f'{clip_config.OPEN_CLIP_FILE} would; give "quick_gelu" (OpenAI\'s models) or "gelu"'
        )
    if activation and set(found.activation.values()) - {None, activation}:
        stated = " and ".join(sorted(set(found.activation.values())))
        raise ValueError(f"its activation is {stated}, not {activation}")
    return _replaced(found, activation) if activation else found


def _replaced(settings: Settings, activation: str) -> Settings:
    return dataclasses.replace(settings, activation=dict.fromkeys(settings.activation, activation))


def _shape(tensors, layout: Layout, key: str, rank: int) -> tuple[int, ...]:
    name = layout.weights[key]
    if name not in tensors:
        raise ValueError(f"{name} is missing")
    shape = tensors[name].shape
    if len(shape) != rank or 0 in shape:
        raise ValueError(f"{name} has shape {list(shape)}, expected {rank} dimensions")
    return shape


def _config(tensors, layout: Layout, settings: Settings) -> ClipConfig:
    """Every size from the shapes of a few tensors; `_tree` checks the others against it."""
    towers = {}
    for tower, prefix in layout.layers.items():
        numbers = {
            name.removeprefix(prefix).partition(".")[0]
            for name in tensors
            if name.startswith(prefix)
        }
        up = f"{prefix}0.{layout.parts['up'][0].format('weight')}"
        if up not in tensors or not tensors[up].shape:
            raise ValueError(f"{up} is missing")
        towers[tower] = Tower(
            width=_shape(tensors, layout, f"{tower}.positions", 2)[1],
            layers=len(numbers),
            heads=settings.heads[tower],
            hidden=tensors[up].shape[0],
            activation=settings.activation[tower],
            epsilon=settings.epsilon[tower],
        )
    positions, patch = (
        _shape(tensors, layout, "image.positions", 2)[0],
        _shape(tensors, layout, "image.patches", 4)[-1],
    )
    rows = int((positions - 1) ** 0.5)
    if rows < 1 or rows * rows != positions - 1:
        name = layout.weights["image.positions"]
        raise ValueError(f"{name} has {positions} rows, expected a square number and one")
    return ClipConfig(
        **towers,
        side=rows * patch,
        patch=patch,
        context=_shape(tensors, layout, "text.positions", 2)[0],
        vocabulary=_shape(tensors, layout, "text.tokens", 2)[0],
        embedding=_shape(tensors, layout, "image.projection", 2)[
            0 if layout.linear_projections else 1
        ],
        end=settings.end,
    )


def _leaves(layout: Layout, config: ClipConfig) -> Iterator[Leaf]:
    """Every array outside of the layers, in torch's shape."""
    D = config.embedding
    for tower, sizes in (("image", config.image), ("text", config.text)):
        W = sizes.width
        shapes = {
            "patches": (W, 3, config.patch, config.patch),
            "class": (W,),
            "positions": ((config.side // config.patch) ** 2 + 1, W),
            "norm_before.scale": (W,),
            "norm_before.bias": (W,),
            "tokens": (config.vocabulary, W),
            "norm_after.scale": (W,),
            "norm_after.bias": (W,),
            "projection": (D, W) if layout.linear_projections else (W, D),
        }
        if tower == "text":
            shapes["positions"] = (config.context, W)
        for part, shape in shapes.items():
            if name := layout.weights.get(f"{tower}.{part}"):
                yield Leaf((tower, *part.split(".")), (name,), shape)


def _layer_leaves(layout: Layout, tower: str, sizes: Tower, number: int) -> Iterator[Leaf]:
    """The arrays of one layer, in torch's shape; of several names each has an equal share."""
    W, H = sizes.width, sizes.hidden
    kernels = {"qkv": (3 * W, W), "out": (W, W), "up": (H, W), "down": (W, H)}
    for part, names in layout.parts.items():
        for key, own in (("weight", "kernel" if part in kernels else "scale"), ("bias", "bias")):
            full = tuple(f"{layout.layers[tower]}{number}.{name.format(key)}" for name in names)
            shape = kernels.get(part, (W,)) if key == "weight" else kernels.get(part, (W,))[:1]
            yield Leaf((part, own), full, (shape[0] // len(names), *shape[1:]))


def _tree(tensors: Mapping[str, np.ndarray], layout: Layout, config: ClipConfig) -> dict:
    sizes = {"image": config.image, "text": config.text}
    layers = {
        tower: [list(_layer_leaves(layout, tower, own, i)) for i in range(own.layers)]
        for tower, own in sizes.items()
    }
    leaves = list(_leaves(layout, config))
    each = leaves + [leaf for rows in layers.values() for row in rows for leaf in row]
    expected = {name: leaf.shape for leaf in each for name in leaf.names}
    scale = layout.weights["logit_scale"]
    expected[scale] = tensors[scale].shape if scale in tensors and tensors[scale].size == 1 else ()
    found = {name: array.shape for name, array in tensors.items()}
    if problems := differences(found, expected, BUFFERS):
        more = f"; and {len(problems) - 8} more" if problems[8:] else ""
        raise ValueError("; ".join(problems[:8]) + more)
    if broken := [name for name in expected if not np.isfinite(tensors[name]).all()]:
        raise ValueError(f"{broken[0]} holds numbers that are not finite")

    tree: dict = {"logit_scale": np.float32(tensors[scale].reshape(()))}
    for leaf in leaves:
        transposed = leaf.path[-1] == "projection" and layout.linear_projections
        _set(tree, leaf.path, _ours(tensors, leaf, transposed))
    for tower, rows in layers.items():
        for column in zip(*rows, strict=True):
            path = column[0].path
            arrays = [_ours(tensors, leaf, path[-1] == "kernel") for leaf in column]
            _set(tree, (tower, "layers", *path), np.stack(arrays))
    return tree


def _ours(tensors: Mapping[str, np.ndarray], leaf: Leaf, transposed: bool) -> np.ndarray:
    """The float32 array of a leaf in the order of the tree."""
    array = np.concatenate([np.asarray(tensors[name], np.float32) for name in leaf.names])
    if leaf.path[-1] == "patches":  # [W, 3, p, p] → [p * p * 3, W]
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    return array.T if transposed else array


def _set(tree: dict, path: tuple[str, ...], array: np.ndarray) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = array
