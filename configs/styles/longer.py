r"""The transformer of four styles, tuned for longer: more images, captions and edits, one more fall of the rate.

Purpose: a larger share of images and captions, and twice the edits. It starts from the end of
configs/styles/tuned.py at two thirds of its first rate.

The argument is the folder of all runs, which has tuned/ and tokens/.

Command:
  JAX_NUM_CPU_DEVICES=2 python -m emu3_jax.train --config=configs/styles/longer.py --workdir=runs/styles/longer

Observed: 105 minutes on two cores, 4,000 to 5,100 tokens/s. Nats per image code given the caption,
128 items of each of the three validation splits, after 2,000, 4,000, … 14,000 steps: 4.87, 4.77,
4.62, 4.48, 4.37, 4.23, 4.12, with training at 3.93: more steps would gain. For the first 1,891 steps
the rate fell towards a run of 15,500. Recall: docs/reference/measurements.md.
"""

from ml_collections import ConfigDict

from configs.styles import tuned

WEIGHTS = dict(
    text_to_image=6.0,
    chinese_to_image=1.0,
    image_to_text=2.5,
    text_to_video=0.2,
    video_to_text=0.1,
    text=0.1,
    chat=0.6,
    edits=1.2,
    clips=0.25,
)


def get_config(arg: str = "") -> ConfigDict:
    folder = arg or "runs/styles"
    config = tuned.get_config(folder)
    config.start.transformer = f"{folder}/tuned"
    config.data.mixture = tuple(
        dict(source, weight=WEIGHTS[source.get("name", source["task"])])
        for source in config.data.mixture
    )
    config.run.steps = 14000
    config.run.optimizer.learning_rate = 1e-3
    config.run.checkpoint.every = 1000
    config.evaluation = tuple(dict(entry, every=2000) for entry in config.evaluation)
    return config
