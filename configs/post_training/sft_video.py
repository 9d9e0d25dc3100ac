r"""Video: an image to a clip that begins with it, and the first part of a clip to the rest.

Purpose: image to video and video extension (paper, section 3.3: 2 s of context, then the next 2 s,
repeated). Captions to clips are learnt beside them. The paper's layout of prompts is UNKNOWN; ours
is the order of reading: BOS, caption, the image or the first part as a block of its own, then the
clip to learn, EOS, with the loss on that clip alone.

Numbers: from the paper rows of 131,072 tokens (its stage 2), which hold two parts of 2 s at 24
frames/s and 512 x 512 pixels (50,000 tokens each). UNKNOWN, chosen here: rate (1e-5 falling to
zero), steps, batch (16 rows), 0.1 empty captions, half weight on visual tokens as in pretraining.

Data: document records that end with a clip (caption, image, clip; or caption, first part, rest) and
captioned clips in the folder that is the argument, train/ and validation/. `nano`, or
`nano:FOLDER`: the twin of the shipped nano model, with rows of 528 tokens for an image and a clip;
configs/post_training/data/tokenize_video.py makes its data of the emoji.
It starts from any run directory or released weights: --config.start.transformer=PATH; the released
ones never saw a clip.

What goes wrong: an image is coded as one frame that stands still, so its codes are not those of the
first frame of a clip, which holds motion: the two differ even for the same pixels, and the model
has to learn to pass from one to the other. Parts must be tokenized apart, since a clip's codes
depend on what came before. Rows that hold one document waste room: data/filled says how much.

Commands:
  python -m emu3_jax.train --config=configs/post_training/sft_video.py:gs://BUCKET/tokens --workdir=gs://BUCKET/video
  python -m emu3_jax.train --config=configs/post_training/sft_video.py:nano --workdir=runs/video

Expected: docs/how_to/post_training.md. The 8B was never run by us.
"""

from ml_collections import ConfigDict

from configs.post_training import sft_drawing


def get_config(arg: str = "") -> ConfigDict:
    config, tokens = sft_drawing.begin(
        arg,
        "tokens_video",
        "runs/emu3_8b_stage2",
        twin="tokens_nano_video",
        twin_length=528,
        batch_size=16,
        sequence_length=131_072,
        context=16,
    )
    train = f"{tokens}/train"
    only_the_last = dict(null_prompt=0.1, train_condition=False)
    config.data.mixture = (
        dict(dataset=train, task="document", weight=4.0, **only_the_last),
        dict(dataset=train, task="text_to_video", weight=1.0, **only_the_last),
    )
    # Held-out clips are as long as those of training: one row per share of the mesh.
    config.evaluation = tuple(dict(e, limit=64, batch_size=1) for e in config.evaluation)
    return config
