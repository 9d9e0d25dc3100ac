"""Ablation: dropout off at all four sites (the paper trains with 0.1).

Hypothesis: faster to a given training loss, and overfitting within tens of epochs of this small
corpus. Second-hand reports say that training at scale collapses without dropout.

  python -m emu3_jax.train --config=configs/ablations/no_dropout.py \
    --workdir=runs/ablations/no_dropout
"""

from ml_collections import ConfigDict

from configs import transformer_nano


def get_config(arg: str = "") -> ConfigDict:
    config = transformer_nano.get_config(arg)
    config.model.dropout = 0.0
    return config
