"""From a config to a task: errors name the wrong key."""

import pytest

from configs import vision_tokenizer_nano
from emu3_jax.config import ConfigError
from emu3_jax.train.tasks import registry
from emu3_jax.train.tasks.vision.vision_tokenizer import VisionTokenizerTask


def _values(**changes) -> dict:
    return vision_tokenizer_nano.get_config().to_dict() | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(task="painting"),
            "config.task: .*'painting'; known: pretrain, dpo, grpo, vision_tokenizer, or",
        ),
        (dict(task="nowhere:Task"), "config.task: 'nowhere:Task' cannot be imported: No module"),
        (dict(task="json:Task"), "config.task: 'json:Task' cannot be imported: .* no attribute"),
        (dict(task=3), "config.task: there is no task 3; known: "),
        (dict(evaluations={}), "did you mean config.evaluation"),
        (dict(task="pretrain"), "model.attn_resolutions does not exist; did you mean model.att"),
        (dict(model=dict(chanels=1)), "model.chanels does not exist"),
    ],
)
def test_what_does_not_belong_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        registry.resolve(_values(**changes))


def test_sections_that_are_missing_are_named():
    values = _values()
    del values["task"]
    with pytest.raises(
        ConfigError, match="config.task is missing; it is one of pretrain, dpo, grpo, v"
    ):
        registry.resolve(values)
    for name in ("model", "data", "run"):
        values = {key: section for key, section in _values().items() if key != name}
        with pytest.raises(ConfigError, match=f"config.{name} is missing; it has no default"):
            registry.resolve(values)


def test_the_config_makes_its_task():
    config = registry.resolve(_values())
    task = registry.make(config, read_data=False)
    assert isinstance(task, VisionTokenizerTask) and task.config is config
    assert task.config.model.codebook_size == 2048 and task.unit == "frames"
