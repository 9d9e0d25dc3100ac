"""Tokenize the embedded emoji corpus for the nano model.

Purpose: 64-pixel stills and 8-frame clips become 8 x 8 and 4 x 8 x 8 codes of the shipped nano
vision tokenizer, captions become pieces of the shipped SentencePiece model.

  python -m emu3_jax.tokenize --config=configs/tokenize_nano.py --config.output=runs/tokens_nano

A model that sees the corpus more than a few times memorises it; configs/transformer_nano.py trains
on eight versions of each item, seven of them moved by up to two pixels (--config.copies.train=8).
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    del arg
    config = ConfigDict()
    config.output = "runs/tokens_nano"
    config.corpus_zip = "assets/fluent_emoji.zip"
    config.corpus = "runs/emoji"
    config.splits = ConfigDict()
    config.splits.train = ("train.jsonl", "text.jsonl")
    config.splits.validation = ("validation.jsonl",)
    config.splits.validation_combination = ("validation_combination.jsonl",)
    config.vision_tokenizer = "assets/vision_tokenizer_nano"
    config.text_tokenizer = "assets/text_nano.model"
    config.vocabulary = "small"
    config.video_format = "paper"
    # One size for all items: both limits are the 64 x 64 pixels of the corpus.
    config.min_pixels = 64 * 64
    config.max_pixels = 64 * 64
    config.fps = 0.0  # every frame: the clips hold eight
    config.max_frames = 8
    config.image_batch = 32
    config.clip_batch = 4
    config.items_per_shard = 512
    config.max_skipped = 0.0
    config.copies = ConfigDict(dict(train=1))
    config.max_shift = 2
    config.decode_threads = 2
    config.worker = 0
    config.workers = 1
    return config
