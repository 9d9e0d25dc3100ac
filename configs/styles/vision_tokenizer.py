r"""The vision tokenizer of the emoji in four styles: 8 x 8 codes for 64 pixels, as the nano one.

Purpose: sharper images of more kinds at the same number of codes. Beside
configs/vision_tokenizer_nano.py it has a codebook of 8,192 entries instead of 2,048, six times the
images, batches that are mostly stills, and more steps.

The argument is the folder of all runs (launch/train_styles.sh).

Commands:
  python -m emu3_jax.data.emoji_styles --output=runs/styles/corpus
  JAX_NUM_CPU_DEVICES=2 python -m emu3_jax.train --config=configs/styles/vision_tokenizer.py --workdir=runs/styles/vision_tokenizer

Expected: 36 to 41 frames/s on two cores, 75 minutes. Observed: all 1,267 validation stills 25.36 dB
(aim: 27; the nano tokenizer, which knows 3D alone: 22.30), 48 clips 24.85 dB. The first 256 stills,
faces, had 25.57, 26.49, 26.99, 27.24, 27.33 dB after 1,000 to 5,000 steps. Figures by style:
docs/reference/measurements.md.
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
    config.evaluation = (dict(reconstruction, every=1000, data=corpus),)
    return config
