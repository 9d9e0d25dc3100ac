r"""Quality fine-tuning of the model of four styles: on the best of its own images.

Purpose: the last stage of launch/train_styles.sh. The recipe is that of configs/post_training/sft_qft.py
for the nano model, which needed no guidance of 6 afterwards; all that configs/styles/tuned.py
teaches stays in the mixture, since what is left out is unlearnt.

The argument is the folder of all runs, which has tuned/ and tokens/preferences/.

Command:
  python -m emu3_jax.train --config=configs/styles/qft.py --workdir=runs/styles/qft

Not run yet. Choose the guidance anew afterwards: 1.5 to 3 was best for the nano model.
"""

from ml_collections import ConfigDict

from configs.post_training import sft_qft
from configs.styles import tuned


def get_config(arg: str = "") -> ConfigDict:
    folder = arg or "runs/styles"
    base = tuned.get_config(folder)
    config = sft_qft.get_config(f"nano:{folder}/tokens")
    config.text_tokenizer, config.model = base.text_tokenizer, base.model
    config.start.transformer = f"{folder}/tuned"
    (chosen, *_) = config.data.mixture
    kept = tuple(dict(entry, weight=0.2 * entry["weight"]) for entry in base.data.mixture)
    config.data.mixture = (chosen, *kept)
    config.data.sequence_length = base.data.sequence_length
    config.run.steps = 600
    config.evaluation = tuple(dict(entry, every=200) for entry in base.evaluation)
    return config
