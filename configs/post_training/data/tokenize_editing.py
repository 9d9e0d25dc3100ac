"""Tokenize edits of emoji for the nano model.

Purpose: edits of skin tone and of persons to tune on, with the captioned images that
configs/post_training/sft_editing.py keeps beside them (train), and held-out edits of two kinds: base
emoji that are not in training (validation), unseen combinations of person and tone
(validation_combination). The argument is the unpacked corpus.

  python -m emu3_jax.data.fluent_emoji --output=runs/emoji
  python -m emu3_jax.data.emoji_documents --corpus=runs/emoji
  python -m emu3_jax.tokenize --config=post_training/data/tokenize_editing
"""

from ml_collections import ConfigDict

from configs import tokenize_nano


def get_config(arg: str = "") -> ConfigDict:
    config = tokenize_nano.get_config()
    config.output = "runs/tokens_nano_editing"
    config.corpus_zip = ""
    config.corpus = arg or "runs/emoji"
    config.splits.train = ("edit:edits_train.jsonl", "train.jsonl")
    config.splits.validation = ("edit:edits_validation.jsonl",)
    config.splits.validation_combination = ("edit:edits_validation_combination.jsonl",)
    return config
