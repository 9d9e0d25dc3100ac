r"""Quality fine-tuning of the model of four styles: on the best of its own images.

Purpose: the last stage of launch/train_styles.sh. The recipe is that of configs/post_training/sft_qft.py
for the nano model, which needed no guidance of 6 afterwards; Chinese captions and clips stay in the
mixture, since what is left out is unlearnt.

The argument is the folder of all runs, which has transformer/ and tokens/preferences/.

Command:
  python -m emu3_jax.train --config=configs/styles/qft.py --workdir=runs/styles/tuned

Not run yet. Choose the guidance anew afterwards: 1.5 to 3 was best for the nano model.
"""

from ml_collections import ConfigDict

from configs.post_training import sft_qft
from configs.styles import transformer


def get_config(arg: str = "") -> ConfigDict:
    folder = arg or "runs/styles"
    base = transformer.get_config(folder)
    config = sft_qft.get_config(f"nano:{folder}/tokens")
    config.text_tokenizer, config.model = base.text_tokenizer, base.model
    config.start.transformer = f"{folder}/transformer"
    chosen, english, described = config.data.mixture
    chinese, videos = base.data.mixture[1], base.data.mixture[3]
    config.data.mixture = (
        chosen,
        dict(english, weight=0.5),
        dict(chinese, weight=0.5, train_condition=False),
        described,
        dict(videos, weight=0.1),
    )
    config.run.steps = 600
    config.evaluation = tuple(dict(entry, every=200) for entry in base.evaluation)
    return config
