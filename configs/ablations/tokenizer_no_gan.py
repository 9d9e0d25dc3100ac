"""Ablation: the vision tokenizer without the discriminator.

Hypothesis: a higher PSNR and softer images: pixel losses do not reward what the discriminator does.

  python -m emu3_jax.train --config=configs/ablations/tokenizer_no_gan.py:twin \
    --workdir=runs/tokenizers/tokenizer_no_gan
"""

from ml_collections import ConfigDict

from configs import vision_tokenizer_emu3


def get_config(arg: str = "") -> ConfigDict:
    config = vision_tokenizer_emu3.get_config(arg)
    config.loss.adversarial.weight = 0.0
    return config
