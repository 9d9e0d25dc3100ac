"""Make token datasets from a raw corpus (images, clips, captions, text).

  python -m emu3_jax.tokenize --config=tokenize_nano --config.output=runs/tokens

Each split becomes a folder with ArrayRecord shards and a dataset.json. Run the same command again
after a stop: finished shards are kept. skipped.jsonl lists the skipped items and the reasons. On
several machines, give each --config.worker=I --config.workers=N and the same output.
"""

import logging

from absl import flags

from emu3_jax import command_line, config_help
from emu3_jax.config import to_dataclass
from emu3_jax.tokenize.run import tokenize
from emu3_jax.tokenize.tokenize_config import TokenizeConfig


def _main() -> None:
    logging.getLogger().setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.INFO)
    if flags.FLAGS.config is None:
        raise ValueError("--config is needed, such as --config=tokenize_nano; see --help")
    tokenize(to_dataclass(TokenizeConfig, flags.FLAGS.config))


if __name__ == "__main__":
    command_line.define_config(help_text="What to tokenize, and how; its keys are above.")
    keys = config_help.listing({"tokenize": TokenizeConfig})
    command_line.run(
        _main, f"{__doc__}\nKeys of the config (default), set with --config.KEY=VALUE:\n{keys}\n"
    )
