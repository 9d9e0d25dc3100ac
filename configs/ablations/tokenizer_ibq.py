"""Ablation: index backpropagation, the quantizer of Emu3.5, at the same number of codes.

Hypothesis: every entry gets a gradient at every step, so all are in use without dead-code revival.

  python -m emu3_jax.train --config=configs/ablations/tokenizer_ibq.py:twin \
    --workdir=runs/tokenizers/tokenizer_ibq
"""

from ml_collections import ConfigDict

from configs import vision_tokenizer_emu3


def get_config(arg: str = "") -> ConfigDict:
    config = vision_tokenizer_emu3.get_config(arg)
    config.model.quantizer = "ibq"
    config.codebook.update(start="as_is", revive_every=0)
    return config
