r"""The transformer of the emoji in four styles: 9.5 M parameters, captions in English and Chinese.

Purpose: one model that draws four styles, from captions in two languages. The recipe is that of
configs/transformer_nano.py, with two more layers, without dropout, and without loss on the codes
before a caption. Captions in Chinese are drawn from (train_zh) but not written, so that an image
has one language. The rate stays at its peak: configs/styles/tuned.py lets it fall, from any
checkpoint of this run, and a longer run goes on with more --config.run.steps and --allow_changes.

The argument is the folder of all runs (launch/train_styles.sh).

Commands:
  python -m emu3_jax.tokenize --config=configs/styles/tokenize.py
  JAX_NUM_CPU_DEVICES=2 python -m emu3_jax.train --config=configs/styles/transformer.py --workdir=runs/styles/transformer

Observed: 27 minutes on two cores, 4,900 tokens/s (the shipped model: 5,479 steps, on four versions
of each image, as in tuned.py). Nats per image code given the caption, 128 items of each of the
three validation splits, after 2,000 and 4,000 steps: 6.33, 5.83. Validation is below training
(6.25), whose images are moved; on images that are not moved training is at 5.7.
"""

from ml_collections import ConfigDict

from configs import transformer_nano


def get_config(arg: str = "") -> ConfigDict:
    folder = arg or "runs/styles"
    tokens = f"{folder}/tokens"
    config = transformer_nano.get_config(tokens)
    config.text_tokenizer = "assets/text_styles.model"
    config.model.num_layers = 6
    # Tuning included, an image is drawn some twenty-four times from its English caption and six
    # from its Chinese one, in eight versions and in four: too seldom to be learnt by heart.
    config.model.dropout = 0.0
    config.start.codebook = f"{folder}/vision_tokenizer_export"
    config.data.mixture = _mixture(tokens)
    config.run.steps = 5500
    config.run.optimizer.schedule = "constant"
    config.run.checkpoint.every = 500
    (likelihood,) = config.evaluation
    splits = ("validation", "validation_combination", "validation_style")
    config.evaluation = (dict(likelihood, every=2000, limit=128, splits=splits),)
    return config


def _mixture(tokens: str) -> tuple[dict, ...]:
    english, chinese = f"{tokens}/train", f"{tokens}/train_zh"
    return (
        dict(dataset=english, task="text_to_image", weight=4.0, null_prompt=0.1),
        dict(
            dataset=chinese,
            task="text_to_image",
            name="chinese_to_image",
            weight=1.5,
            null_prompt=0.1,
        ),
        # The codes before a caption are not predicted: the nano model, which learnt to predict them,
        # gains 0.05 nats by a caption (docs/reference/measurements.md).
        dict(dataset=english, task="image_to_text", weight=2.0, train_condition=False),
        dict(dataset=english, task="text_to_video", weight=0.2, null_prompt=0.1),
        dict(dataset=english, task="video_to_text", weight=0.2, train_condition=False),
        dict(dataset=english, task="text", weight=0.3),
    )
