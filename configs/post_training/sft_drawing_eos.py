r"""Captions to images, our own variant: EOS, marks and sizes are learnt too.

Purpose: what configs/post_training/sft_drawing.py does, without what it unlearns. The official
script trains on visual tokens alone, so that EOL, EOF, EOI and EOS, which text after an image
needs, drift for as long as it runs. Here the whole image block and EOS are learnt, the caption is
not.

Numbers: those of the official script, but for what pretraining does otherwise and there is no
reason to change in between: means over all tokens of an update, weight decay on kernels alone, a
clipping norm of 1, visual tokens at half weight (paper, section 2.4). 0.1 empty captions as in our
pretraining. UNKNOWN: whether any of these matters; the official script states no result.

Data, argument, start and twin: as sft_drawing.

What goes wrong: guidance needs the empty captions; without them it has no second branch after some
thousand steps. More than a few epochs of a small set are memorised: watch the held-out likelihood.

Commands:
  python -m emu3_jax.train --config=configs/post_training/sft_drawing_eos.py:gs://BUCKET/tokens --workdir=gs://BUCKET/sft_drawing_eos
  python -m emu3_jax.train --config=configs/post_training/sft_drawing_eos.py:nano --workdir=runs/sft_drawing_eos

Expected: docs/how_to/post_training.md. The 8B was never run by us.
"""

from ml_collections import ConfigDict

from configs.post_training import sft_drawing


def get_config(arg: str = "") -> ConfigDict:
    config, tokens = sft_drawing.begin(arg, "tokens_drawing")
    train = f"{tokens}/train"
    config.data.mixture = (
        dict(dataset=train, task="text_to_image", null_prompt=0.1, train_condition=False),
    )
    config.run.optimizer.final_fraction = 0.1
    return config
