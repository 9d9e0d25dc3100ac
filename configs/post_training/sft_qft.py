r"""Quality fine-tuning (QFT): drawing on the best data, at 720 x 720; the loss is on vision tokens.

Purpose: the first stage of post-training for generation (paper, section 2.5.1): from many captioned
images to few good ones, and from 512 to 720 pixels. Preference optimisation follows it.

From the paper: loss on vision tokens alone, images chosen by the mean of HPSv2.1, MPS and LAION
aesthetics, area raised from 512 x 512 to 720 x 720, clips filtered strictly by resolution and
motion, a rate that falls to zero linearly.
UNKNOWN, never published, chosen here: number of images, thresholds and how the three scores were
normalised (rank each by itself: their scales differ), rate (1e-5 at the beginning), steps, batch
(64 rows of 10,240 tokens, one image each).

Data: captioned images that passed the filter, in the folder that is the argument, train/ and
validation/, tokenized at 720 x 720: --config.min_pixels=518400 --config.max_pixels=518400. Clips
are tuned by configs/post_training/sft_video.py. It starts from any run directory or released
weights: --config.start.transformer=PATH. `nano`, or `nano:FOLDER`: the twin of the shipped nano
model, at its 64 x 64. Its corpus has no poor images to leave out, and with these alone it learns
them by heart; its best images are the chosen ones of FOLDER/preferences, which it drew itself, for
captions without an image too. Captions and marks keep their loss, or they are forgotten within
some hundred steps (docs/how_to/post_training.md).

What goes wrong: with vision tokens alone the end of an image is learnt from nowhere, and the model
ends it by the grammar only; for text after images give marks a loss
(--config.data.loss_weights.structure=1). Scores of aesthetics prefer portraits and sunsets: look at
what the filter leaves before training. A filter per caption keeps subjects that score low
everywhere.

Commands:
  python -m emu3_jax.train --config=configs/post_training/sft_qft.py:gs://BUCKET/tokens --workdir=gs://BUCKET/qft
  python -m emu3_jax.train --config=configs/post_training/sft_qft.py:nano --workdir=runs/qft

Expected: docs/how_to/post_training.md. The 8B was never run by us.
"""

from ml_collections import ConfigDict

from configs.post_training import sft_drawing


def get_config(arg: str = "") -> ConfigDict:
    config, tokens = sft_drawing.begin(arg, "tokens_best", "Emu3-Stage1")
    drawn = dict(null_prompt=0.1, train_condition=False)
    config.data.mixture = (dict(dataset=f"{tokens}/train", task="text_to_image", **drawn),)
    config.data.loss_weights = ConfigDict(dict(text=0.0, image=1.0, video=1.0, structure=0.0))
    config.run.optimizer.update(schedule="linear", final_fraction=0.0)
    if sft_drawing.is_nano(arg):
        _nano(config, tokens, drawn)
    return config


def _nano(config: ConfigDict, tokens: str, drawn: dict) -> None:
    train = f"{tokens}/train"
    config.data.mixture = (
        dict(dataset=f"{tokens}/preferences", task="chosen", weight=1.0, **drawn),
        dict(dataset=train, task="text_to_image", weight=1.0, **drawn),
        dict(dataset=train, task="image_to_text", weight=0.5),
    )
    config.data.loss_weights = ConfigDict(dict(text=1.0, image=0.5, video=0.5, structure=1.0))
