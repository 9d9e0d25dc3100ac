"""Tokenize the embedded emoji of four styles, with English and Chinese captions.

Purpose: the data of configs/styles/transformer.py. Each still is there with its English caption
(train) and with its Chinese one (train_zh), in eight versions and in four, all but one of them moved
by up to two pixels. configs/styles/tuned.py takes chats, edits and continued clips too,
configs/styles/refined.py single things in sixteen versions.

  python -m emu3_jax.data.emoji_styles --output=runs/styles/corpus
  python -m emu3_jax.data.emoji_documents --corpus=runs/styles/corpus
  python -m emu3_jax.data.questions.emoji --corpus=runs/styles/corpus
  python -m emu3_jax.tokenize --config=configs/styles/tokenize.py

The argument is the folder of all runs: corpus/, the vision tokenizer, and tokens/, which is
made here (launch/train_styles.sh).
"""

from ml_collections import ConfigDict

from configs import tokenize_nano


def get_config(arg: str = "") -> ConfigDict:
    folder = arg or "runs/styles"
    config = tokenize_nano.get_config()
    config.output = f"{folder}/tokens"
    config.corpus_zip = ""
    config.corpus = f"{folder}/corpus"
    config.splits.train_zh = ("train_zh.jsonl",)
    config.splits.train_things = ("train_things.jsonl",)
    config.splits.validation_style = ("validation_style.jsonl",)
    config.splits.validation_style_zh = ("validation_style_zh.jsonl",)
    config.splits.train_chats = ("questions_train.jsonl",)
    for split in ("validation_style", "validation_combination"):
        config.splits[f"{split}_chats"] = (f"questions_{split}.jsonl",)
    config.splits.train_edits = ("edit:edits_train.jsonl",)
    config.splits.train_clips = ("videos_train.jsonl",)
    config.vision_tokenizer = f"{folder}/vision_tokenizer_export"
    config.text_tokenizer = "assets/text_styles.model"
    config.copies = ConfigDict(dict(train=8, train_zh=4, train_things=16))
    return config
