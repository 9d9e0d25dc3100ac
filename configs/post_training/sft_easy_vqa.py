r"""Answers to questions about coloured shapes: easy-vqa alone, at nano size, for the highest figure.

Purpose: how far the nano model comes on a public set with a test split of its own. `sft_chat:nano`
mixes the same data with emoji and keeps what the model knew; this one does not.

Numbers: from answers alone the shapes stay at chance, so images are also predicted from their
captions (weight 0.5, as in pretraining) and described. Twelve versions of each image, moved by up
to seven pixels: with three, the loss on training questions falls much faster than that on others.
Dropout 0.05 for the same reason. Rate 1e-3 falling to zero, rows of 352 tokens.

Data: `tokenize_easy_vqa` makes runs/easy_vqa_tokens; the argument is another folder. It starts from
the shipped nano model, or from --config.start.transformer=RUN.

Commands:
  pip install -r requirements-questions.txt
  python -m emu3_jax.data.questions.easy_vqa --output=runs/easy_vqa
  python -m emu3_jax.tokenize --config=post_training/data/tokenize_easy_vqa
  python -m emu3_jax.train --config=post_training/sft_easy_vqa --workdir=runs/easy_vqa_chat

Expected: docs/reference/measurements.md.
"""

from ml_collections import ConfigDict

from configs.post_training import sft_drawing


def get_config(arg: str = "") -> ConfigDict:
    folder = arg or "runs/easy_vqa_tokens"
    config, _ = sft_drawing.begin("nano", "unused")
    train = f"{folder}/train"
    config.data.mixture = (
        dict(dataset=train, task="chat", weight=3.0),
        dict(dataset=train, task="text_to_image", weight=1.0, train_condition=False),
        dict(dataset=train, task="image_to_text", weight=1.5),
    )
    config.data.loss_weights = ConfigDict(dict(text=1.0, image=0.5, video=0.0, structure=0.0))
    config.model.dropout = 0.05
    config.run.steps = 5400
    config.run.optimizer.update(learning_rate=1e-3, schedule="linear")
    config.run.checkpoint.every = 300
    config.evaluation = (
        dict(
            evaluator="questions", every=600, limit=800, max_new=8, tokens=folder, splits=("test",)
        ),
    )
    return config
