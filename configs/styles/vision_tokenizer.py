r"""The vision tokenizer of the emoji in four styles: 8 x 8 codes for 64 pixels, as the nano one.

Purpose: sharper images at the same number of codes. Beside configs/vision_tokenizer_nano.py it has
a second residual block at each level (the decoder then has three), six times the images, batches
that are mostly stills, and more steps.

The argument is the folder of all runs (launch/train_styles.sh).

Commands:
  python -m emu3_jax.data.emoji_styles --output=runs/styles/corpus
  JAX_NUM_CPU_DEVICES=2 python -m emu3_jax.train --config=configs/styles/vision_tokenizer.py --workdir=runs/styles/vision_tokenizer

Aim: 27 dB on validation stills. Not trained yet; 25 frames/s on two cores, 2.9 hours. Before, the
nano tokenizer, which knows 3D alone, reaches 27.6 dB on stills of 3D, 21.1 of Noto, 19.7 of Twemoji
and 23.3 of flat (128 each, all splits).
"""

from ml_collections import ConfigDict

from configs import vision_tokenizer_nano


def get_config(arg: str = "") -> ConfigDict:
    corpus = f"{arg or 'runs/styles'}/corpus"
    config = vision_tokenizer_nano.get_config()
    config.model.codebook_size = 8192
    config.data.root = corpus
    config.data.groups = (
        dict(name="stills", kind="stills", size=64, count=16),
        dict(name="clips", kind="clips", size=64, count=2, frames=8),
    )
    config.loss.clips = 0.5  # their stills are half of a batch, and four in five drawings have none
    config.run.steps = 5000
    config.run.ema_decay = 0.999
    (reconstruction,) = config.evaluation
    config.evaluation = (dict(reconstruction, every=1000, data=corpus, limit=256),)
    return config
