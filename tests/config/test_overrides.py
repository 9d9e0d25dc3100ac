"""Overrides that lead into a list of sections: evaluation.0.every, data.mixture.1.weight."""

import copy

import pytest
from ml_collections import ConfigDict

from emu3_jax.config import ConfigError, apply_overrides


def _config():
    mixture = (dict(task="text", weight=1.0), dict(task="image", weight=4.0))
    evaluation = [dict(evaluator="a", every=3, splits=("x",)), dict(evaluator="b")]
    return ConfigDict(dict(data=dict(mixture=mixture, sizes=(1, 2)), evaluation=evaluation)).lock()


def test_keys_of_entries_are_set():
    config = _config()
    before = copy.deepcopy(config.to_dict())
    entries = config.evaluation, config.data.mixture
    overrides = {
        "evaluation.0.every": "10",
        "evaluation.0.splits": "('y','z')",
        "evaluation.0.evaluator": "3",
        "evaluation.1.limit": "64",
        "evaluation.1.sampling.guidance": "6.5",
        "evaluation.1.sampling.seed": "1",
        "data.mixture.1.weight": "2.5",
        "data.sizes.0": "7",
    }
    apply_overrides(config, overrides)
    assert config.to_dict() == {
        "data": dict(
            mixture=(dict(task="text", weight=1.0), dict(task="image", weight=2.5)), sizes=(7, 2)
        ),
        "evaluation": [
            dict(evaluator="3", every=10, splits=("y", "z")),
            dict(evaluator="b", limit=64, sampling=dict(guidance=6.5, seed=1)),
        ],
    }
    assert config.is_locked
    # Configs share entries with those they are derived from.
    assert entries == (before["evaluation"], before["data"]["mixture"])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("evaluation.2.every", "config.evaluation.2 does not exist; .* a list .* entries 0, 1"),
        ("evaluation.-1.every", "config.evaluation.-1 does not exist"),
        ("evaluation.every", "config.evaluation.every does not exist; .* entries 0, 1"),
        ("evaluation.0", "config.evaluation.0 is a section; set one of its keys"),
        ("evaluation.0.every.deep", "config.evaluation.0.every has no keys; it is 3"),
    ],
)
def test_entries_that_are_not_there_are_named(key, message):
    config = _config()
    with pytest.raises(ConfigError, match=message):
        apply_overrides(config, {key: "5"})
    assert config == _config()
