r"""Understanding, stage 1: captions after images, and text; the loss is on text alone.

Purpose: the first of the two stages that make Emu3-Chat of a pretrained model (paper, section
2.5.2): image-to-text data mixed with plain text, no loss on vision tokens, images of about 512 x
512 pixels. Pretraining spends most of its loss on visual tokens; this stage turns the model to
words. Stage 2 (configs/post_training/sft_understanding_stage2.py) teaches it to answer.

From the paper: the data, the loss on text alone. Here marks and sizes have none either, since the
model does not write them in an answer.
UNKNOWN, never published, chosen here: rate (1e-5 falling to zero), steps, batch (64 rows of 5,120
tokens), and the share of plain text (a fifth of the documents).

Data: records of captioned images and of text in the folder that is the argument, train/ and
validation/. `nano`, or `nano:FOLDER`: the twin of the shipped nano model. It starts from any run
directory or released weights: --config.start.transformer=PATH.

What goes wrong: the official code has a flag for this loss that nothing implements (its
apply_loss_on_only_text); without plain text the model answers everything with a caption; drawing
gets worse, so tune it afterwards or mix its data in.

Commands:
  python -m emu3_jax.train --config=configs/post_training/sft_understanding_stage1.py:gs://BUCKET/tokens --workdir=gs://BUCKET/understanding1
  python -m emu3_jax.train --config=configs/post_training/sft_understanding_stage1.py:nano --workdir=runs/understanding1

Expected: docs/how_to/post_training.md. The 8B was never run by us.
"""

from ml_collections import ConfigDict

from configs.post_training import sft_drawing


def get_config(arg: str = "") -> ConfigDict:
    config, tokens = sft_drawing.begin(arg, "tokens_captions", "Emu3-Stage1", sequence_length=5120)
    train = f"{tokens}/train"
    config.data.mixture = (
        dict(dataset=train, task="image_to_text", weight=4.0),
        dict(dataset=train, task="text", weight=1.0),
    )
    config.data.loss_weights = ConfigDict(dict(text=1.0, image=0.0, video=0.0, structure=0.0))
    return config
