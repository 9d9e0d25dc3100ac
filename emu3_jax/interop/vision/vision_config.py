"""config.json of a vision tokenizer, in BAAI's and the -hf layout."""

import dataclasses
import os
import pathlib

from emu3_jax.files import read_json, write_json
from emu3_jax.interop.formats.safetensors_io import CONFIG_FILE, model_type
from emu3_jax.models.vision.tokenizer_config import COMPUTATION, VisionTokenizerConfig

HF_MODEL_TYPES = ("emu3", "emu3_vqgan")
# Fields of an -hf vq_config with the names of VisionTokenizerConfig, and those with other names.
HF_SAME = (
    "codebook_size",
    "embed_dim",
    "in_channels",
    "out_channels",
    "num_res_blocks",
    "temporal_downsample_factor",
)
HF_CONFIG_KEYS = {
    "base_channels": "ch",
    "channel_multiplier": "ch_mult",
    "latent_channels": "z_channels",
    "double_latent": "double_z",
}
# Unsupported choices -> reason; another value in a config.json is an error.
CONSTANTS = {
    "double_z": (False, "this quantizer reads one set of latents"),
    "num_attention_heads": (1, "the attention here has one head"),
}
# Config fields without a key in the released file: written only if they differ.
_OURS = ("norm_groups", "quantizer", "gradient", "fsq_levels")
_RELEASED = {
    "double_z": False,
    "model_type": "Emu3VisionVQ",
    "architectures": ["Emu3VisionVQModel"],
    "auto_map": {
        "AutoConfig": "configuration_emu3visionvq.Emu3VisionVQConfig",
        "AutoModel": "modeling_emu3visionvq.Emu3VisionVQModel",
    },
}


def is_hf(path: str | os.PathLike) -> bool:
    """Whether a directory is in the -hf layout, of a whole model or of a vision tokenizer."""
    return model_type(path) in HF_MODEL_TYPES


def read_tokenizer_config(path: str | os.PathLike) -> VisionTokenizerConfig:
    """The config of a directory in BAAI's or the -hf layout; ValueError if it is not one.

    Missing fields have the released values, which are the defaults of both layouts' classes.
    """
    file = pathlib.Path(path) / CONFIG_FILE
    stored = read_json(file)
    kind = stored.get("model_type")
    if kind in HF_MODEL_TYPES:
        stored = (stored.get("vq_config") or {}) if kind == "emu3" else stored
        stored = {HF_CONFIG_KEYS.get(key, key): value for key, value in stored.items()}
    elif kind != "Emu3VisionVQ":
        raise ValueError(
            f'{file}: expected model_type "Emu3VisionVQ", or "emu3" or "emu3_vqgan" of an -hf '
            f"conversion, found {kind!r}."
        )
    for name, (expected, reason) in CONSTANTS.items():
        if stored.get(name, expected) != expected:
            raise ValueError(
                f"{file}: {name} is {stored[name]!r}, expected {expected!r}; {reason}."
            )
    names = [field.name for field in dataclasses.fields(VisionTokenizerConfig)]
    fields = {name: stored[name] for name in names if name in stored and name not in COMPUTATION}
    try:
        return VisionTokenizerConfig(**_with_true_levels(fields))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error


def _with_true_levels(fields: dict) -> dict:
    """The fields without attention at levels that do not exist, as in the official code."""
    levels = len(fields.get("ch_mult", VisionTokenizerConfig.ch_mult))
    attention = fields.get("attn_resolutions", VisionTokenizerConfig.attn_resolutions) or ()
    return fields | {"attn_resolutions": [i for i in attention if 0 <= i < levels]}


def write_released(path: str | os.PathLike, config: VisionTokenizerConfig, dtype: str) -> None:
    """Writes config.json like that of the released directory."""
    stored = dataclasses.asdict(config)
    as_released = [n for n in _OURS if stored[n] == getattr(VisionTokenizerConfig, n)]
    for name in (*COMPUTATION, *as_released):
        del stored[name]
    write_json(pathlib.Path(path) / CONFIG_FILE, stored | _RELEASED | {"torch_dtype": dtype})
