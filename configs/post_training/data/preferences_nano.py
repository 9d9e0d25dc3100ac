r"""Preference pairs of the shipped nano model: its own reading of what it draws.

Purpose: pairs for DPO that distil what --candidates gains at generation. 8 images for each
training caption; the one after which the model finds the caption likeliest is preferred to the one after
which it is least likely.

  python -m emu3_jax.tokenize --config=tokenize_nano --config.output=runs/tokens
  python -m emu3_jax.preferences --config=post_training/data/preferences_nano --config.output=runs/pairs

The prompts are the captions of runs/tokens/train (--config.prompts). Other scorers, such as CLIP:
--config.scorers in a config of your own (docs/how_to/post_training.md).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.output = "runs/pairs"
    config.prompts = "runs/tokens/train"
    config.model = "nano"
    config.vision_tokenizer = "nano"
    config.height = 8
    config.width = 8
    config.candidates = 8
    config.scorers = (dict(scorer="likelihood"),)
    # Those of best-of-16 in docs/reference/measurements.md: guided, and different enough from each other.
    config.sampling = ConfigDict(dict(guidance=6.0, temperature=0.85, top_k=400))
    config.batch_size = 64
    return config
