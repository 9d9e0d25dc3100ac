r"""Score the images and clips of a token dataset, to leave out poor ones in training.

Purpose: the numbers behind `at_least` of a mixture entry (docs/how_to/post_training.md). The argument is the
folder of weights that LAION's aesthetic predictor needs: clip-vit-large-patch14/ and aesthetic.pth.
Without it only pixels and motion are written, which need no weights.

  python -m emu3_jax.tokenize.rate --config=post_training/data/rate_folder --config.tokens=runs/tokens/train
  python -m emu3_jax.tokenize.rate --config=post_training/data/rate_folder:weights --config.tokens=runs/tokens/train
"""

import pathlib

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict()
    config.tokens = "runs/tokens/train"
    config.vision_tokenizer = "nano"
    if arg:
        folder = pathlib.Path(arg)
        config.scorers = (
            dict(
                scorer="aesthetics",
                clip=str(folder / "clip-vit-large-patch14"),
                head=str(folder / "aesthetic.pth"),
            ),
        )
    return config
