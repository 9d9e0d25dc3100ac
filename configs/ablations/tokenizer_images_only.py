"""Ablation: images alone, as many items per step as images and clips together.

Hypothesis: better images and broken clips, since nothing trains the layers in time.

  python -m emu3_jax.train --config=configs/ablations/tokenizer_images_only.py:twin \
    --workdir=runs/tokenizers/tokenizer_images_only
"""

from ml_collections import ConfigDict

from configs import vision_tokenizer_emu3


def get_config(arg: str = "") -> ConfigDict:
    config = vision_tokenizer_emu3.get_config(arg)
    stills, clips = config.data.groups
    config.data.groups = (dict(stills, count=stills["count"] + clips["count"]),)
    return config
