"""Make preference pairs: draw candidates for each prompt, score them, keep better and worse ones.

  python -m emu3_jax.preferences --config=preferences_nano --config.output=runs/pairs

The folder becomes a token dataset of the kind "preference": the codes that were drawn, the prompt,
the scores and their origin. Run the same command again after a stop: finished shards are kept.
skipped.jsonl lists candidates and prompts that were left out and the reasons. On several machines,
give each --config.worker=I --config.workers=N and the same output.
"""

import logging

import jax
from absl import flags

from emu3_jax import command_line, config_help
from emu3_jax.config import to_dataclass
from emu3_jax.preferences.pair_dataset import make_preferences
from emu3_jax.preferences.preferences_config import PreferencesConfig


def _main() -> None:
    logging.getLogger().setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.INFO)
    if flags.FLAGS.config is None:
        raise ValueError("--config is needed, such as --config=preferences_nano; see --help")
    config = to_dataclass(PreferencesConfig, flags.FLAGS.config)
    mesh = command_line.mesh()
    with jax.set_mesh(mesh):
        make_preferences(config, mesh)


if __name__ == "__main__":
    command_line.define_config(help_text="What to draw and how to compare it; its keys are above.")
    command_line.define_mesh()
    keys = config_help.listing({"preferences": PreferencesConfig})
    command_line.run(
        _main, f"{__doc__}\nKeys of the config (default), set with --config.KEY=VALUE:\n{keys}\n"
    )
