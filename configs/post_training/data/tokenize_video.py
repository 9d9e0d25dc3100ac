"""Tokenize the clips of emoji for the nano model: after their first image, and after their first half.

Purpose: documents that end with a clip, and the captioned clips that
configs/post_training/sft_video.py keeps beside them (train); held out are the clips of base emoji
that are not in training (validation). The argument is the unpacked corpus.

  python -m emu3_jax.data.fluent_emoji --output=runs/emoji
  python -m emu3_jax.data.emoji_documents --corpus=runs/emoji
  python -m emu3_jax.tokenize --config=post_training/data/tokenize_video
"""

from ml_collections import ConfigDict

from configs import tokenize_nano


def get_config(arg: str = "") -> ConfigDict:
    config = tokenize_nano.get_config()
    config.output = "runs/tokens_nano_video"
    config.corpus_zip = ""
    config.corpus = arg or "runs/emoji"
    config.splits = ConfigDict()
    config.splits.train = ("videos_train.jsonl", "train.jsonl")
    config.splits.validation = ("videos_validation.jsonl", "validation.jsonl")
    return config
