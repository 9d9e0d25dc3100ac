"""What a CLIP's weights do not show: heads, activations and the mark of the end, from its config.

Two kinds of files are read beside the weights: transformers' config.json, and OpenCLIP's
open_clip_config.json. Without either, OpenAI's rule for heads holds (64 channels each), with the
exception of OpenCLIP's H and larger ones.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from emu3_jax import files

TRANSFORMERS_FILE = "config.json"
OPEN_CLIP_FILE = "open_clip_config.json"

HEAD_WIDTH = 64
# Of image towers by their width: OpenCLIP's model_configs/ViT-H-14, ViT-g-14 and ViT-bigG-14.json.
IMAGE_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}

# Where config.json leaves a key out, transformers' CLIPTextConfig and CLIPVisionConfig have these.
TRANSFORMERS_DEFAULTS = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
TRANSFORMERS_HEADS = {"image": 12, "text": 8}
TRANSFORMERS_END = 49407
# transformers takes this id, in files from before its end mark was right, for "the largest id".
LARGEST_ID = 2


@dataclasses.dataclass(frozen=True)
class Settings:
    """What configs state; None where they do not.

    Attributes:
      heads: tower ("image", "text") → number of heads.
      activation: tower → activation.
      epsilon: tower → epsilon of LayerNorm.
      end: as `ClipConfig.end`.
    """

    heads: Mapping[str, int | None]
    activation: Mapping[str, str | None]
    epsilon: Mapping[str, float]
    end: int | None = None


def read(folder: pathlib.Path, widths: Mapping[str, int]) -> Settings:
    """The settings of a folder with weights; of none of the files if it has no config.

    Args:
      folder: where the weights are.
      widths: tower → width.

    Raises:
      ValueError: a config that states something these networks do not have; names the file.
    """
    for name, settings in ((OPEN_CLIP_FILE, _of_open_clip), (TRANSFORMERS_FILE, _of_transformers)):
        file = folder / name
        if file.is_file():
            try:
                return settings(files.read_json(file), widths)
            except (AttributeError, KeyError, TypeError, ZeroDivisionError) as error:
                raise ValueError(f"{file} is not a config of a CLIP ({error!r})") from error
    return unstated(widths)


def unstated(widths: Mapping[str, int]) -> Settings:
    """The settings of weights without a config."""
    head_widths = {"image": IMAGE_HEAD_WIDTHS.get(widths["image"], HEAD_WIDTH), "text": HEAD_WIDTH}
    return Settings(
        heads={tower: max(widths[tower] // head_widths[tower], 1) for tower in widths},
        activation=dict.fromkeys(widths),
        epsilon=dict.fromkeys(widths, TRANSFORMERS_DEFAULTS["layer_norm_eps"]),
    )


def _of_transformers(config: Mapping[str, Any], widths: Mapping[str, int]) -> Settings:
    found = {}
    for tower, key in (("image", "vision_config"), ("text", "text_config")):
        # The second key, in old files, has the last word in transformers too.
        stated = (config.get(key) or {}) | (config.get(f"{key}_dict") or {})
        defaults = TRANSFORMERS_DEFAULTS | {"num_attention_heads": TRANSFORMERS_HEADS[tower]}
        found[tower] = defaults | stated
    end = found["text"].get("eos_token_id", TRANSFORMERS_END)
    return Settings(
        heads={tower: found[tower]["num_attention_heads"] for tower in widths},
        activation={tower: found[tower]["hidden_act"] for tower in widths},
        epsilon={tower: found[tower]["layer_norm_eps"] for tower in widths},
        end=None if end == LARGEST_ID else end,
    )


def _of_open_clip(config: Mapping[str, Any], widths: Mapping[str, int]) -> Settings:
    model = config["model_cfg"]
    pool = model["text_cfg"].get("pool_type", "argmax")
    if pool != "argmax":
        raise ValueError(f'{OPEN_CLIP_FILE}: the pool_type of the text is {pool!r}, not "argmax"')
    head_width = model["vision_cfg"].get("head_width", HEAD_WIDTH)
    activation = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    return dataclasses.replace(
        unstated(widths),
        heads={"image": widths["image"] // head_width, "text": model["text_cfg"].get("heads", 8)},
        activation=dict.fromkeys(widths, activation),
    )
