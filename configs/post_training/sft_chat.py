r"""Chat of several turns with several images, also in answers; the loss is on the answers.

Purpose: a model for conversations. Emu3-Chat is trained on one image and one turn, and no form for
more was published; ours is the released template with an EOS after each answer
(emu3_jax/sequence/chat.py). Answers may contain images, which the model then draws.

Numbers: UNKNOWN, chosen here: rate (1e-5 falling to zero), steps, batch (32 rows of 32,768 tokens:
seven images of 512 x 512, or one of 1024 x 1024 and three), a fifth of plain text so that it stays
a language model. Visual tokens of answers have half weight, as in pretraining.

Data: chat and text records in the folder that is the argument, train/ and validation/. It
starts from any run directory or released weights: --config.start.transformer=PATH. `nano`, or
`nano:FOLDER`: the twin of the shipped nano model, which learns to answer questions about emoji and
coloured shapes from FOLDER/questions (launch/post_training.sh makes it). Its rows hold a chat of up
to 352 tokens, a 64-pixel image taking about 80. It also learns captions in both directions: of the
emoji, so that it does not unlearn them, and of the shapes, since from answers alone it told colours
but no shapes apart (docs/how_to/post_training.md).

What goes wrong: 1e-5 was reported as too high for Emu3-Chat with interleaved data (a loss that
stays near 1): try --config.run.optimizer.learning_rate=2e-6; a set with short answers teaches short
answers; turns that do not fit into a row are left out and counted (data/documents_cut).

Commands:
  python -m emu3_jax.train --config=configs/post_training/sft_chat.py:gs://BUCKET/tokens --workdir=gs://BUCKET/chat
  python -m emu3_jax.train --config=configs/post_training/sft_chat.py:nano --workdir=runs/chat

Expected: docs/how_to/post_training.md. The 8B was never run by us.
"""

from ml_collections import ConfigDict

from configs.post_training import sft_drawing


def get_config(arg: str = "") -> ConfigDict:
    config, tokens = sft_drawing.begin(
        arg,
        "tokens_chat",
        "Emu3-Chat",
        twin="post_training",
        batch_size=32,
        sequence_length=32_768,
        context=8,
    )
    if sft_drawing.is_nano(arg):
        return _nano(config, tokens)
    train = f"{tokens}/train"
    config.data.mixture = (
        dict(dataset=train, task="chat", weight=4.0),
        dict(dataset=train, task="text", weight=1.0),
    )
    return config


def _nano(config: ConfigDict, folder: str) -> ConfigDict:
    asked, known = f"{folder}/questions/train", f"{folder}/tokens/train"
    drawn = dict(task="text_to_image", null_prompt=0.1, train_condition=False)
    config.data.mixture = (
        dict(dataset=asked, task="chat", weight=3.0),
        dict(dataset=asked, weight=1.0, name="shapes_drawn", **drawn),
        dict(dataset=asked, task="image_to_text", weight=1.0, name="shapes_described"),
        dict(dataset=known, weight=0.5, name="emoji_drawn", **drawn),
        dict(dataset=known, task="image_to_text", weight=0.5, name="emoji_described"),
    )
    config.run.optimizer.update(learning_rate=1e-3, schedule="linear")
    config.evaluation = tuple(dict(e, tokens=f"{folder}/tokens") for e in config.evaluation)
    return config
