"""The config of `python -m emu3_jax.tokenize`, and the part of it that the output depends on."""

import dataclasses
from typing import Any

from emu3_jax.data.sources.source import MAX_SKIPPED


@dataclasses.dataclass(frozen=True)
class TokenizeConfig:
    """The corpus, the datasets made from it, and how.

    Attributes:
      output: folder; each split becomes the dataset output/<split>.
      splits: split → list of sources (`emu3_jax.data.sources.open_source`): "rows.jsonl",
        "webdataset:shards/{000..123}.tar", "tfds:name:split", "llava:chats.json" or
        "preferences:pairs.parquet".
      corpus: folder that the paths in `splits` are relative to.
      corpus_zip: the embedded emoji corpus, unpacked into `corpus` first; "" for a user's own data.
      vision_tokenizer: folder with config.json and weights; "" for a corpus of text alone.
      text_tokenizer: SentencePiece *.model, ranks *.tiktoken, or "bytes".
      vocabulary: "small" (the size that the two tokenizers need) or "released".
      video_format: "paper" or "univla" (`emu3_jax.sequence.formats`).
      min_pixels, max_pixels: limits of the resize rule: area of an image or a frame in pixels.
      fps: rate at which clips are sampled, in frames per second; 0 takes every frame.
      max_frames: clips are cut to this many frames; 0 sets no limit.
      image_batch, clip_batch: number of images, and of clips, that are encoded together. With many
        sizes, larger batches hold more that is not there.
      items_per_shard: rows of a file, or TFDS examples, per shard.
      max_skipped: share of the items that may be unusable, but at least 5 items; more is an error.
        With 0 no item may be.
      copies: split → number of versions stored of each item with an image or clip: one unchanged,
        the others moved, for corpora so small that a model memorises them; default: 1.
      max_shift: largest move of a copy in pixels, to each side.
      decode_threads: threads that read and resize media.
      worker, workers: this process makes the shards i with i % workers == worker; a resumed job may
        have another number of workers.
    """

    output: str
    splits: dict
    corpus: str = "."
    corpus_zip: str = ""
    vision_tokenizer: str = ""
    text_tokenizer: str = "bytes"
    vocabulary: str = "small"
    video_format: str = "paper"
    min_pixels: int = 512 * 512
    max_pixels: int = 1024 * 1024
    fps: float = 0.0
    max_frames: int = 0
    image_batch: int = 8
    clip_batch: int = 4
    items_per_shard: int = 512
    max_skipped: float = MAX_SKIPPED
    copies: dict = dataclasses.field(default_factory=dict)
    max_shift: int = 0
    decode_threads: int = 2
    worker: int = 0
    workers: int = 1

    def __post_init__(self):
        if not self.output:
            raise ValueError("output is empty, expected a folder; set --config.output=FOLDER")
        if "://" in self.output:
            raise ValueError(
                f"output is {self.output}, expected a folder; shards are written to a local or "
                "shared file system and then copied, as by gcloud storage cp"
            )
        if not self.splits:
            raise ValueError("splits is empty, expected at least one split with its sources")
        for split, sources in self.splits.items():
            if not isinstance(sources, list | tuple) or not sources:
                raise ValueError(f"splits.{split} must be a list of sources, found {sources!r}")
        if self.vocabulary not in ("small", "released"):
            raise ValueError(f'vocabulary must be "small" or "released", found {self.vocabulary!r}')
        if not 0 <= self.max_skipped <= 1:
            raise ValueError(f"max_skipped must be a share from 0 to 1, found {self.max_skipped}")
        if not 0 <= self.worker < self.workers:
            raise ValueError(
                f"worker must be from 0 to workers - 1, found {self.worker} of {self.workers}"
            )
        for split, copies in self.copies.items():
            if split not in self.splits:
                raise ValueError(
                    f"copies names the split {split!r}, splits has {', '.join(self.splits)}"
                )
            if not isinstance(copies, int) or copies < 1 or (copies > 1 and self.max_shift < 1):
                raise ValueError(
                    f"copies.{split} must be at least 1, and max_shift at least 1 if it is more "
                    f"than 1, found {copies!r} and max_shift {self.max_shift}"
                )
        for name in ("image_batch", "clip_batch", "items_per_shard", "decode_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")

    def recipe(self, split: str) -> dict[str, Any]:
        """The settings that decide the bytes of a split's dataset, besides its tokenizers."""
        names = ("min_pixels", "max_pixels", "fps", "max_frames", "image_batch", "clip_batch")
        recipe = {name: getattr(self, name) for name in (*names, "items_per_shard")}
        copies = self.copies.get(split, 1)
        if copies > 1:
            recipe |= {"copies": copies, "max_shift": self.max_shift}
        return {"sources": list(self.splits[split]), **recipe}
