"""The config of `python -m emu3_jax.preferences`, and the part that the output depends on."""

import dataclasses
from typing import Any

from emu3_jax.config import check_choice
from emu3_jax.data.sources.source import MAX_SKIPPED
from emu3_jax.generate import presets
from emu3_jax.generate.decoding.sampling import Sampling

BEST_WORST, ALL = PAIRS = ("best_worst", "all")


@dataclasses.dataclass(frozen=True)
class PreferencesConfig:
    """The prompts, the model that draws for them, and the scorers that compare what it drew.

    Attributes:
      output: folder of the dataset.
      prompts: *.txt with a prompt per line; json, jsonl or parquet rows with "prompt" or a caption;
        or a token dataset, whose captions of images are taken. Equal prompts count once.
      limit: take this many prompts, at even distances; 0 for all.
      model: run directory, directory of weights, or the name of a shipped model.
      vision_tokenizer: of the model's codes; likewise.
      step: checkpoint of a run directory; default: the newest.
      dtype: of the model's weights and activations; "": float32, or as trained.
      height, width: codes of an image along each side.
      candidates: images drawn for each prompt (the paper: 8 to 10).
      scorers: entries, dict(scorer=NAME, …) as in `emu3_jax.scorers.registry`; several are combined
        by rank.
      pairs: "best_worst" of the candidates, or "all" of which one is better than the other.
      sampling: how candidates are drawn; default: the released demo's settings.
      negative_prompt: of the unconditional branch of guidance.
      batch_size: most images that are drawn together.
      prompts_per_shard: prompts whose pairs are written together; a killed run loses a shard.
      max_skipped: share of the candidates that may be unusable, but at least 5; more is an error.
      worker, workers: this process makes the shards i with i % workers == worker; a resumed job may
        have another number of workers.
    """

    output: str
    prompts: str
    model: str
    vision_tokenizer: str
    height: int
    width: int
    limit: int = 0
    step: int | None = None
    dtype: str = ""
    candidates: int = 8
    scorers: tuple[dict, ...] = ({"scorer": "likelihood"},)
    pairs: str = BEST_WORST
    sampling: Sampling = presets.DEMO
    negative_prompt: str = ""
    batch_size: int = 16
    prompts_per_shard: int = 32
    max_skipped: float = MAX_SKIPPED
    worker: int = 0
    workers: int = 1

    def __post_init__(self):
        for name in ("output", "prompts", "model", "vision_tokenizer"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; set --config.{name}=PATH")
        if "://" in self.output:
            raise ValueError(f"output is {self.output}, expected a folder on a disk")
        if not self.scorers:
            raise ValueError("scorers is empty, expected at least one entry, dict(scorer=NAME)")
        check_choice("pairs", self.pairs, PAIRS)
        if self.candidates < 2:
            raise ValueError(f"candidates must be at least 2, found {self.candidates}")
        if self.limit < 0:
            raise ValueError(f"limit must be at least 0, found {self.limit}")
        if self.sampling.greedy:
            raise ValueError("sampling.temperature is 0, so all candidates would be equal")
        for name in ("height", "width", "batch_size", "prompts_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not 0 <= self.max_skipped <= 1:
            raise ValueError(f"max_skipped must be a share from 0 to 1, found {self.max_skipped}")
        if not 0 <= self.worker < self.workers:
            raise ValueError(
                f"worker must be from 0 to workers - 1, found {self.worker} of {self.workers}"
            )

    def recipe(self) -> dict[str, Any]:
        """The settings that decide the bytes of the dataset, ready for JSON."""
        names = (
            "prompts",
            "limit",
            "dtype",
            "height",
            "width",
            "candidates",
            "pairs",
            "negative_prompt",
        )
        recipe = {name: getattr(self, name) for name in (*names, "batch_size", "prompts_per_shard")}
        recipe["scorers"] = [dict(entry) for entry in self.scorers]
        return recipe | {"sampling": dataclasses.asdict(self.sampling)}
