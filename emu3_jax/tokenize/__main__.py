"""Make token datasets from a raw corpus (images, clips, captions, text).

  python -m emu3_jax.tokenize --config=tokenize_nano --config.output=runs/tokens

Each split becomes a folder with ArrayRecord shards and a dataset.json. Run the same command again
after a stop: finished shards are kept. skipped.jsonl lists the skipped items and the reasons. On
several machines, give each --config.worker=I --config.workers=N and the same output.
"""

from emu3_jax import command_line
from emu3_jax.tokenize.run import tokenize
from emu3_jax.tokenize.tokenize_config import TokenizeConfig

if __name__ == "__main__":
    command_line.run_config(tokenize, TokenizeConfig, __doc__, "tokenize_nano")
