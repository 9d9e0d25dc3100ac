r"""Tokenize a folder of your own images, clips and captions for a model of the nano size.

Purpose: the first step on your own data. The argument is the folder. It holds train.jsonl and, for
held-out figures, validation.jsonl (docs/how_to/data.md describes a row), and may hold text.model, a text
tokenizer trained on the same captions.

  python -m emu3_jax.text.train --input=data/train.jsonl --field=text --output=data/text.model --size=8192
  python -m emu3_jax.tokenize --config=configs/tokenize_folder.py:data --config.output=runs/tokens

Images keep their aspect at an area of 64 x 64 pixels, clips the same at 4 frames a second and at
most 8 frames: what the shipped nano vision tokenizer was trained on. It was trained on emoji only;
for other images, check its reconstructions first (python -m emu3_jax.tokenize.reconstruct).
Expected: some 200 images/s on two cores.
"""

import pathlib

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    folder = pathlib.Path(arg or "data")
    config = ConfigDict()
    config.output = "runs/tokens"
    config.corpus = str(folder)
    config.splits = ConfigDict(dict(train=("train.jsonl",)))
    if (folder / "validation.jsonl").exists():
        config.splits.validation = ("validation.jsonl",)
    config.vision_tokenizer = "assets/vision_tokenizer_nano"
    own = folder / "text.model"
    config.text_tokenizer = str(own) if own.exists() else "assets/text_nano.model"
    config.vocabulary = "small"
    config.video_format = "paper"
    config.min_pixels = 64 * 64
    config.max_pixels = 64 * 64
    config.fps = 4.0
    config.max_frames = 8
    config.image_batch = 8
    config.clip_batch = 4
    config.items_per_shard = 512
    config.max_skipped = 0.01
    config.decode_threads = 2
    config.worker = 0
    config.workers = 1
    return config
