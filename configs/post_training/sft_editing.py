r"""Editing and interleaved documents: images and text in, the last image out.

Purpose: edit an image by an instruction, combine several, or go on with a story of images and
texts. Emu3's released weights never saw such data, and no layout was published (its maintainers:
build the sequence and tune). Ours is the order of reading: BOS, images and texts, the target, EOS,
with the loss on the last segment alone, its size, marks and EOS included.

Numbers: UNKNOWN, chosen here: rate (1e-5 falling to zero), steps, batch (64 rows of 20,480 tokens:
two images of 720 x 720, or four of 512 x 512), half weight on visual tokens as in pretraining. 0.1
of the documents have no text and keep their images (as Emu3.5 drops the text alone), so that
guidance strengthens the instruction. A fifth is drawing from captions, so that it is kept.

Data: document records (source images, instruction, target; or any documents that end with what is
to be learnt) and captioned images in the folder that is the argument, train/ and validation/.
Images in the middle of a document are learnt where a config of your own states
train_condition=True. `nano`, or `nano:FOLDER`: the twin of the shipped nano model; three 64-pixel
images fit a row of 352. configs/post_training/data/tokenize_editing.py makes its data of
the emoji. It starts from any run directory or released weights:
--config.start.transformer=PATH.

What goes wrong: the size of the answer is forced after the *last* BOI and IMG; the official helper
looks for the first, and breaks with any image in the prompt. A copied source is what a model learns
first: look at the loss of pairs that differ much. Quality falls towards the end of long interleaved
documents (reported for CoMM, without an answer): keep them short.

Commands:
  python -m emu3_jax.train --config=configs/post_training/sft_editing.py:gs://BUCKET/tokens --workdir=gs://BUCKET/editing
  python -m emu3_jax.train --config=configs/post_training/sft_editing.py:nano --workdir=runs/editing

Expected: docs/how_to/post_training.md. The 8B was never run by us.
"""

from ml_collections import ConfigDict

from configs.post_training import sft_drawing


def get_config(arg: str = "") -> ConfigDict:
    config, tokens = sft_drawing.begin(
        arg, "tokens_editing", twin="tokens_nano_editing", sequence_length=20_480, context=4
    )
    train = f"{tokens}/train"
    only_the_last = dict(null_prompt=0.1, train_condition=False)
    config.data.mixture = (
        dict(dataset=train, task="document", weight=4.0, **only_the_last),
        dict(dataset=train, task="text_to_image", weight=1.0, **only_the_last),
    )
    return config
