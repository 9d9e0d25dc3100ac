"""Ablation: half as many codes (16,384 instead of 32,768; in the twin 1,024 instead of 2,048).

Hypothesis: one bit less per token costs some tenths of a decibel; all codes are in use sooner.

  python -m emu3_jax.train --config=configs/ablations/tokenizer_half_codebook.py:twin \
    --workdir=runs/tokenizers/tokenizer_half_codebook
"""

from ml_collections import ConfigDict

from configs import vision_tokenizer_emu3


def get_config(arg: str = "") -> ConfigDict:
    config = vision_tokenizer_emu3.get_config(arg)
    config.model.codebook_size //= 2
    return config
