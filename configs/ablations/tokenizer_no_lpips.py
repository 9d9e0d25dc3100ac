"""Ablation: the vision tokenizer without the perceptual distance.

Hypothesis: the discriminator alone keeps texture, but not the texture of the image itself.

  python -m emu3_jax.train --config=configs/ablations/tokenizer_no_lpips.py:twin \
    --workdir=runs/tokenizers/tokenizer_no_lpips
"""

from ml_collections import ConfigDict

from configs import vision_tokenizer_emu3


def get_config(arg: str = "") -> ConfigDict:
    config = vision_tokenizer_emu3.get_config(arg)
    config.loss.perceptual = 0.0
    return config
