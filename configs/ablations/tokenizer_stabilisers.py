"""Ablation: the stabilisers of the vision tokenizer's discriminator, each switched off alone.

Purpose: an on/off curve of every stabiliser. The shipped nano tokenizer's decoder is trained
against a fresh discriminator, with five times the weight that its own recipe gives it and without
the perceptual distance, so that a short run shows the failures. The argument names the change:

  (nothing)   ramp, adaptive weight, averaged weights; no gradient penalty
  no_ramp     full weight in the generator's loss from the discriminator's first step on
  fixed       0.1 times the discriminator's gradient, however large it is
  penalty     R1 on real images
  no_average  validation with the last weights instead of their moving average

Hypothesis: without the ramp PSNR drops when the discriminator comes in; with a fixed weight it
keeps falling; the penalty limits the logits; averages remove noise from validation.

Observed: with a fixed weight PSNR ends 0.27 (stills) and 0.33 dB (clips) lower; averages gain 0.1
to 0.2 dB until the learning rate is low; the penalty makes the gradients 300 times smaller; the
ramp changes nothing with the adaptive weight. 6 to 10 minutes per run; docs/how_to/vision_tokenizer.md has
the table.

  for name in "" no_ramp fixed penalty no_average; do
    JAX_NUM_CPU_DEVICES=2 python -m emu3_jax.train \
      --config=configs/ablations/tokenizer_stabilisers.py:$name --workdir=runs/stabilisers/${name:-base}
  done
"""

from ml_collections import ConfigDict

from configs import vision_tokenizer_nano_decoder

CHANGES = {
    "": {},
    "no_ramp": {"loss.adversarial.warmup": 0},
    "fixed": {"loss.adversarial.adaptive": False},
    "penalty": {"loss.adversarial.penalty": 0.01},
    "no_average": {"run.ema_decay": 0.0},
}


def get_config(arg: str = "") -> ConfigDict:
    if arg not in CHANGES:
        raise ValueError(f"the argument must be one of {sorted(CHANGES)}, found {arg!r}.")
    config = vision_tokenizer_nano_decoder.get_config()
    stills, clips = config.data.groups
    config.data.groups = (dict(stills, count=4), dict(clips, count=2))
    config.loss.perceptual = 0.0
    config.loss.adversarial.update(weight=0.1, start=20, warmup=60)
    config.run.steps = 200
    config.run.log.every = 10
    (reconstruction,) = config.evaluation
    config.evaluation = (dict(reconstruction, every=20, perceptual=""),)
    config.update_from_flattened_dict(CHANGES[arg])
    return config
