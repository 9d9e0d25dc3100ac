r"""Understanding, stage 2: questions about images and their answers; the loss is on the answers.

Purpose: the second of the two stages that make Emu3-Chat (paper, section 2.5.2): question and
answer pairs, a subset of LLaVA-OneVision's, images at their own size within 512 x 512 and 1024 x
1024 pixels. The template is the released one (emu3_jax/sequence/chat.py).

From the paper: the data and the limits of sizes.
UNKNOWN, never published, chosen here: the subset (six sets of LLaVA-OneVision's list were never
released, so nobody has all of it), rate (1e-5 falling to zero), steps, batch (64 rows of 20,480
tokens: one image of 1024 x 1024 is 16,520 tokens).

Data: chat records in the folder that is the argument, train/ and validation/, tokenized with the
limits of the paper, which are the defaults of `python -m emu3_jax.tokenize`: smaller images are
enlarged, larger ones made smaller. `nano`, or `nano:FOLDER`: the twin of the shipped nano model,
whose images are all of 64 x 64. It starts from the run of stage 1, or from any run directory or
released weights: --config.start.transformer=PATH.

What goes wrong: one image per row at these sizes, so several need
configs/post_training/sft_chat.py; a conversation longer than a row loses its last turns
(data/documents_cut counts them); a question that contains the template's ". ASSISTANT:" is refused
when it is tokenized.

Commands:
  python -m emu3_jax.train --config=configs/post_training/sft_understanding_stage2.py:gs://BUCKET/tokens --workdir=gs://BUCKET/understanding2 --config.start.transformer=gs://BUCKET/understanding1
  python -m emu3_jax.train --config=configs/post_training/sft_understanding_stage2.py:nano --workdir=runs/understanding2

Expected: docs/how_to/post_training.md. The 8B was never run by us.
"""

from ml_collections import ConfigDict

from configs.post_training import sft_drawing


def get_config(arg: str = "") -> ConfigDict:
    config, tokens = sft_drawing.begin(
        arg,
        "tokens_questions",
        "runs/understanding1",
        twin="tokens_nano_chat",
        sequence_length=20_480,
        context=4,
    )
    config.data.mixture = (dict(dataset=f"{tokens}/train", task="chat"),)
    config.data.loss_weights = ConfigDict(dict(text=1.0, image=0.0, video=0.0, structure=0.0))
    return config
