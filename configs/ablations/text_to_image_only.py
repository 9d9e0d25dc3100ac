"""Ablation: one task alone, text→image, against the mixture of five.

Hypothesis: at the same number of tokens the single task wins on images, by less than its share
of the tokens would suggest, if the other tasks teach the same associations.

  python -m emu3_jax.train --config=configs/ablations/text_to_image_only.py \
    --workdir=runs/ablations/text_to_image_only --config.run.steps=1500

Observed (1,500 steps): validation 4.57 nats per image code against 4.75; recall at 10 of drawn
images 24.5 % against 11.5 %: more than its share of the tokens suggests, so the tasks compete.
"""

from ml_collections import ConfigDict

from configs import transformer_nano


def get_config(arg: str = "") -> ConfigDict:
    config = transformer_nano.get_config(arg)
    config.data.mixture = tuple(
        entry for entry in config.data.mixture if entry["task"] == "text_to_image"
    )
    return config
