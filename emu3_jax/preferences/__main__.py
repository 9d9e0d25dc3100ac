"""Make preference pairs: draw candidates for each prompt, score them, keep better and worse ones.

  python -m emu3_jax.preferences --config=post_training/data/preferences_nano \\
    --config.output=runs/pairs

The folder becomes a token dataset of the kind "preference": the codes that were drawn, the prompt,
the scores and their origin. Run the same command again after a stop: finished shards are kept.
skipped.jsonl lists candidates and prompts that were left out and the reasons. On several machines,
give each --config.worker=I --config.workers=N and the same output.
"""

import jax

from emu3_jax import command_line
from emu3_jax.preferences.pair_dataset import make_preferences
from emu3_jax.preferences.preferences_config import PreferencesConfig


def _main(config: PreferencesConfig) -> None:
    mesh = command_line.mesh()
    with jax.set_mesh(mesh):
        make_preferences(config, mesh)


if __name__ == "__main__":
    command_line.define_mesh()
    command_line.run_config(
        _main, PreferencesConfig, __doc__, "post_training/data/preferences_nano"
    )
