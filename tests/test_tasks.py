"""From a config to a task: what does not belong is refused by name."""

import pytest
from ml_collections import ConfigDict

from configs import vision_tokenizer_nano
from emu3_jax.config import ConfigError
from emu3_jax.train.loop import RunConfig
from emu3_jax.train.tasks import make_task

RUN = RunConfig(steps=1)


def _config(**changes) -> ConfigDict:
    config = vision_tokenizer_nano.get_config()
    config.update(changes)
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(task="painting"), "task must be one of pretrain, vision_tokenizer, got 'painting'"),
        (dict(evaluations=ConfigDict()), "did you mean config.evaluation"),
        (dict(task="pretrain"), "config.text_tokenizer is missing; the task pretrain needs it"),
        (dict(model=ConfigDict(dict(chanels=1))), "model.chanels does not exist"),
    ],
)
def test_what_does_not_belong_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_task(_config(**changes), RUN)


def test_the_config_makes_its_task():
    task = make_task(_config(), RUN)
    assert task.config.codebook_size == 2048 and task.unit == "frames"
