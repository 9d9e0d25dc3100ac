"""Score the images and clips of token datasets once, so that a mixture can leave out poor ones.

  python -m emu3_jax.tokenize.rate --config=post_training/data/rate_folder \\
    --config.tokens=runs/tokens/train

Decodes the codes by their vision tokenizer and writes quality/ into the dataset: a number per
record of each scorer, its pixels and, of a clip, its motion. Of a clip, scorers see the middle
frame. Run the same command again after a stop: finished shards are kept. On several machines, give
each --config.worker=I --config.workers=N. A mixture entry states thresholds: at_least.
"""

import dataclasses
import itertools
import logging

import jax
import numpy as np
from etils import epath

from emu3_jax import command_line
from emu3_jax.data.codec import vision_codec
from emu3_jax.data.codec.fingerprint import vision_fingerprint
from emu3_jax.data.tokens import quality
from emu3_jax.data.tokens.records import Record, Shard, StoredRecords, TokenDataset, open_dataset
from emu3_jax.files import read_json, write_json
from emu3_jax.scorers import registry
from emu3_jax.scorers.scorer import Scorer, score_all
from emu3_jax.sequence import Image, Text, Video
from emu3_jax.train import weights

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RateConfig:
    """The dataset and its scorers.

    Attributes:
      tokens: the dataset, a folder with dataset.json.
      vision_tokenizer: weights, run directory, or shipped name; of the dataset's codes.
      scorers: entries, dict(scorer=NAME, …) as in `emu3_jax.scorers.registry`; without any, pixels
        and motion alone.
      batch_size: images or clips that are decoded and scored together.
      worker, workers: this process scores the shards i with i % workers == worker.
    """

    tokens: str
    vision_tokenizer: str
    scorers: tuple[dict, ...] = ()
    batch_size: int = 64
    worker: int = 0
    workers: int = 1

    def __post_init__(self):
        if "://" in self.tokens:
            raise ValueError(f"tokens is {self.tokens}, expected a folder on a disk")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {self.batch_size}")
        if not 0 <= self.worker < self.workers:
            raise ValueError(
                f"worker must be from 0 to workers - 1, found {self.worker} of {self.workers}"
            )


def rate(config: RateConfig) -> int:
    """Scores this worker's shards of a dataset; returns how many it made.

    Raises:
      ValueError: the dataset, the tokenizer or a scorer cannot be used, there is nothing to score,
        or its scores are of other scorers.
    """
    scorers = registry.make(config.scorers)
    for scorer in scorers:
        if hasattr(scorer, "of_model"):
            raise ValueError(f"scorers: {scorer.name} judges by the model that drew, and none did")
        if scorer.name in quality.OWN:
            raise ValueError(f"scorers: the name {scorer.name!r} is taken; give it another")
    vision = weights.load_vision_tokenizer(config.vision_tokenizer)
    fingerprint = vision_fingerprint(vision[0].config, vision[1])
    dataset = open_dataset(config.tokens, vision_tokenizer=fingerprint)
    shards = [shard for shard in dataset.info.shards if shard.kind in quality.KINDS]
    if not shards:
        held = ", ".join(sorted(dataset.info.counts))
        raise ValueError(f"{config.tokens}: holds no images and no clips to score, only {held}")
    _begin(dataset, config)
    made = 0
    for shard in shards[config.worker :: config.workers]:
        if not quality.scores_file(dataset.path, shard).exists():
            scores = _scores(dataset.path, shard, vision, scorers, config.batch_size)
            quality.write_scores(dataset.path, shard, scores)
            made += 1
            log.info("%s: scored", shard.file)
    return made


def _begin(dataset: TokenDataset, config: RateConfig) -> None:
    """Writes the plan, or compares it with the one that is there."""
    plan = {"dataset": dataset.info.fingerprint, "scorers": [dict(e) for e in config.scorers]}
    file = quality.plan_file(dataset.path)
    before = read_json(file) if file.exists() else plan
    for name in plan:
        if before.get(name) != plan[name]:
            raise ValueError(
                f"{file.parent}: was made with {name} {before.get(name)!r}, now it is "
                f"{plan[name]!r}; delete that folder to score anew"
            )
    write_json(file, plan)


def _scores(
    folder: epath.Path, shard: Shard, vision: tuple, scorers: tuple[Scorer, ...], batch_size: int
) -> dict[str, np.ndarray]:
    """name → float [records] of one shard."""
    records = StoredRecords(folder, [shard])
    parts = []
    for start in range(0, len(records), batch_size):
        some = [records[i] for i in range(start, min(start + batch_size, len(records)))]
        parts.append(_batch(some, vision, scorers, batch_size))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _batch(
    records: list[Record], vision: tuple, scorers: tuple[Scorer, ...], batch_size: int
) -> dict[str, np.ndarray]:
    shown = [next(s for s in r.segments if isinstance(s, Image | Video)) for r in records]
    texts = [next(s for s in r.segments if isinstance(s, Text)).text for r in records]
    pixels = vision_codec.decode(vision, [segment.codes for segment in shown], batch_size)
    found = {"pixels": np.array([one.shape[-3] * one.shape[-2] for one in pixels], np.float64)}
    if isinstance(shown[0], Video):
        found["motion"] = np.array([quality.motion(clip) for clip in pixels])
        pixels = [clip[len(clip) // 2] for clip in pixels]
    for scorer in scorers:
        scored = score_all(scorer, texts, pixels)
        found[scorer.name] = scored.values_N
        for index, reason in itertools.islice(scored.reasons.items(), 3):
            log.warning("%s: no score (%s)", records[index].key, reason)
    return found


def _main(config: RateConfig) -> None:
    with jax.set_mesh(command_line.mesh()):
        print(f"{rate(config)} shards scored: {config.tokens}/{quality.FOLDER}")


if __name__ == "__main__":
    command_line.define_mesh()
    command_line.run_config(_main, RateConfig, __doc__, "post_training/data/rate_folder")
