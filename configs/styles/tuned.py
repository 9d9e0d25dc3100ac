r"""The transformer of four styles, tuned on everything it shall do, while its rate falls to zero.

Purpose: the decay of configs/styles/transformer.py on better data, as MiniCPM does it (arXiv
2404.06395): beside captions in both directions the model learns chats about images, edits (another
skin tone, person or style) and clips that go on from their first image or their first half.

The argument is the folder of all runs, which has transformer/ and tokens/.

Command:
  JAX_NUM_CPU_DEVICES=2 python -m emu3_jax.train --config=configs/styles/tuned.py --workdir=runs/styles/tuned

Observed: 55 minutes on two cores, 4,800 tokens/s. Nats per image code given the caption, 128 items
of each of the three validation splits, after 1,000, 2,000, 4,000, 5,000, 7,000 and 7,500 steps:
5.30, 5.11, 4.86, 4.73, 4.45, 4.41, with training at 4.3: more steps would gain. On images that are
not moved instead (copies.train=1), training is at 3.9 and validation at 5.25 after 2,000 steps, and
fewer images are found. Recall: docs/reference/measurements.md.
"""

from ml_collections import ConfigDict

from configs.styles import transformer


def get_config(arg: str = "") -> ConfigDict:
    folder = arg or "runs/styles"
    tokens = f"{folder}/tokens"
    config = transformer.get_config(folder)
    config.start = ConfigDict(dict(transformer=f"{folder}/transformer", shared_ids=-1))
    last = dict(null_prompt=0.1, train_condition=False)
    config.data.mixture = (
        *config.data.mixture,
        dict(dataset=f"{tokens}/train_chats", task="chat", weight=0.5),
        dict(dataset=f"{tokens}/train_edits", task="document", name="edits", weight=0.7, **last),
        dict(dataset=f"{tokens}/train_clips", task="document", weight=0.2, name="clips", **last),
    )
    # An image and a clip, or a caption and two halves of a clip, have up to 500 tokens.
    config.data.sequence_length = 528
    config.run.steps = 7500
    config.run.optimizer.update(schedule="linear", warmup_steps=50)
    config.evaluation = tuple(dict(entry, every=1000) for entry in config.evaluation)
    return config
