"""Tokenize easy-vqa alone for the nano model, with twelve versions of each training image.

Purpose: chats and captions to tune on (train), and the test questions (test), for `sft_easy_vqa`.
Each version is moved by up to seven pixels, so that shapes are not learnt by where they stand. The
argument is the folder that `emu3_jax.data.questions.easy_vqa` wrote.

  python -m emu3_jax.data.questions.easy_vqa --output=runs/easy_vqa
  python -m emu3_jax.tokenize --config=post_training/data/tokenize_easy_vqa
"""

from ml_collections import ConfigDict

from configs import tokenize_nano


def get_config(arg: str = "") -> ConfigDict:
    config = tokenize_nano.get_config()
    config.corpus_zip = ""
    config.corpus = arg or "runs/easy_vqa"
    config.output = "runs/easy_vqa_tokens"
    config.splits = ConfigDict()
    config.splits.train = ("train.jsonl", "train_captions.jsonl")
    config.splits.test = ("test.jsonl",)
    config.copies = ConfigDict(dict(train=12))
    config.max_shift = 7
    return config
