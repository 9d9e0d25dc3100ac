"""A whole dataset of pairs, or one worker's share of it: resumable as tokenizing is."""

from pathlib import Path

import jax

from emu3_jax.data.prompts import read_prompts
from emu3_jax.interop.bundle import with_vision
from emu3_jax.preferences.candidates import PairMaker
from emu3_jax.preferences.preferences_config import PreferencesConfig
from emu3_jax.scorers import registry
from emu3_jax.tokenize.run import SplitJob
from emu3_jax.train import weights


def make_preferences(config: PreferencesConfig, mesh: jax.sharding.Mesh | None = None) -> Path:
    """Makes the dataset, or this worker's share of it; returns its folder.

    Args:
      config: what to make.
      mesh: where the model is; None: the first device.

    Raises:
      ValueError: prompts, a model or a scorer cannot be used, the output was made with another
        config, or more candidates than `max_skipped` allows are unusable.
    """
    prompts = read_prompts(config.prompts, config.limit)
    scorers = registry.make(config.scorers)
    vision = weights.load_vision_tokenizer(config.vision_tokenizer, mesh=mesh)
    bundle, label = weights.load_language_model(
        config.model, config.step, mesh, config.dtype or None
    )
    bundle = with_vision(bundle, *vision, config.vision_tokenizer, label)
    maker = PairMaker(config, prompts, bundle, label, scorers)
    job = SplitJob(Path(config.output).name, maker)
    return job.fill(range(config.worker, len(maker), config.workers), job.one_by_one)
