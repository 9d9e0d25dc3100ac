"""The weights of MPS, a CLIP and a cross-attention over its tokens, from the user's own files.

The released `MPS_overall_checkpoint.pth` is a pickled torch module, which is code and is refused.
Its state dict, saved once with torch (`torch.save(model.state_dict(), file)`), has the CLIP in
transformers' names after "model." and this network after "cross_model."; safetensors of these names
work too.
"""

import os
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from emu3_jax.interop.formats.safetensors_io import differences
from emu3_jax.interop.vision import clip_weights
from emu3_jax.models.features.clip import ClipConfig

CLIP_PREFIX, HEAD_PREFIX = "model.", "cross_model."
CROSS = {
    ("norm", "scale"): "norm.weight",
    ("norm", "bias"): "norm.bias",
    ("query",): "to_q.weight",
    ("key_value",): "to_kv.weight",
    ("out",): "to_out.weight",
    ("up",): "ff.0.weight",
    ("down",): "ff.2.weight",
}
OWN = {
    ("norm", "scale"): "norm.weight",
    ("norm", "bias"): "norm.bias",
    ("fused",): "fused_attn_ff_proj.weight",
    ("attention_out",): "attn_out.weight",
    ("down",): "ff_out.1.weight",
    ("frequencies",): "rotary_emb.inv_freq",
}
HALVES = (("cross", 0, CROSS), ("own", 1, OWN))


def load(
    path: str | os.PathLike, activation: str = ""
) -> tuple[ClipConfig, dict, tuple[dict, ...]]:
    """(config, tree of the CLIP, layers) for `models.features.clip` and `mps`.

    Args:
      path: the file or folder; see the module docstring.
      activation: as in `clip_weights.load`.

    Raises:
      ValueError: no such file, or tensors that do not fit; names the file and the tensors.
    """
    path = pathlib.Path(path)
    tensors = clip_weights.read(path)
    parts: dict[str, dict[str, np.ndarray]] = {CLIP_PREFIX: {}, HEAD_PREFIX: {}}
    try:
        for name, array in tensors.items():
            prefix = f"{name.partition('.')[0]}."
            if prefix not in parts:
                raise ValueError(f"{name} is unexpected")
            parts[prefix][name.removeprefix(prefix)] = array
        folder = path if path.is_dir() else path.parent
        config, tree = clip_weights.of_tensors(parts[CLIP_PREFIX], folder, activation)
        layers = head_of(parts[HEAD_PREFIX])
        if (width := layers[0]["own"]["fused"].shape[0]) != config.embedding:
            raise ValueError(f"{HEAD_PREFIX}layers read {width} channels, not {config.embedding}")
        return config, tree, layers
    except ValueError as error:
        raise ValueError(f"{path} cannot be used as MPS: {error}") from error


def head_of(tensors: Mapping[str, np.ndarray]) -> tuple[dict, ...]:
    """The layers for `models.features.mps` of tensors layers.<n>.<half>.fn.….

    Raises:
      ValueError: missing, surplus, mis-shaped or infinite tensors; names them.
    """
    numbers = {int(m[1]) for name in tensors if (m := re.match(r"layers\.(\d+)\.", name))}
    first = "layers.0.0.fn.to_kv.weight"
    if first not in tensors or tensors[first].ndim != 2:
        raise ValueError(f"{first} is missing")
    expected = _shapes(tensors, len(numbers))
    found = {name: array.shape for name, array in tensors.items()}
    if problems := differences(found, expected):
        raise ValueError("; ".join(problems[:8]) + ("; and more" if problems[8:] else ""))
    if broken := [name for name in expected if not np.isfinite(tensors[name]).all()]:
        raise ValueError(f"{broken[0]} holds numbers that are not finite")
    layers = []
    for number in range(len(numbers)):
        layer: dict = {}
        for half, index, names in HALVES:
            layer[half] = {"norm": {}}
            for path, name in names.items():
                array = np.asarray(tensors[f"layers.{number}.{index}.fn.{name}"], np.float32)
                target = layer[half]["norm"] if path[0] == "norm" else layer[half]
                target[path[-1]] = array.T
        layers.append(layer)
    return tuple(layers)


def _shapes(tensors: Mapping[str, np.ndarray], layers: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of all tensors, by the sizes of three of the first layer."""

    def rows(name: str) -> int:
        array = tensors.get(f"layers.0.0.fn.{name}")
        return array.shape[0] if array is not None and array.ndim else 0

    both, width = tensors["layers.0.0.fn.to_kv.weight"].shape
    size = both // 2
    heads, hidden = rows("to_q.weight"), rows("ff.0.weight") // 2
    if size < 2 or size % 2 or heads % size:
        raise ValueError(f"heads of {size} channels do not fit to_q's {heads} rows")
    cross = {
        "norm.weight": (width,),
        "norm.bias": (width,),
        "to_q.weight": (heads, width),
        "to_kv.weight": (2 * size, width),
        "to_out.weight": (width, heads),
        "ff.0.weight": (2 * hidden, width),
        "ff.2.weight": (width, hidden),
    }
    own = {
        "norm.weight": (width,),
        "norm.bias": (width,),
        "fused_attn_ff_proj.weight": (heads + 2 * size + 2 * hidden, width),
        "attn_out.weight": (width, heads),
        "ff_out.1.weight": (width, hidden),
        "rotary_emb.inv_freq": (size // 2,),
    }
    return {
        f"layers.{number}.{half}.fn.{name}": shape
        for number in range(layers)
        for half, shapes in enumerate((cross, own))
        for name, shape in shapes.items()
    }
