"""A run directory belongs to one config, every field of which it keeps."""

import dataclasses
import json

import pytest
import tiny_tasks
from line_task import LineConfig

from emu3_jax.config import ConfigError, read_config, save_config, to_values
from emu3_jax.data.pixels.pixel_batches import PixelConfig, PixelGroup
from emu3_jax.models.vision.tokenizer_config import VisionTokenizerConfig
from emu3_jax.sharding import MeshConfig
from emu3_jax.train.optimizer import OptimizerConfig
from emu3_jax.train.run import run_directory
from emu3_jax.train.run.metrics import LogConfig
from emu3_jax.train.run_config import RunConfig

RUN = RunConfig(steps=3, optimizer=OptimizerConfig(learning_rate=0.1))


def _with_checkpoint(folder, config):
    run_directory.claim(config, folder, allow_changes=False)
    (folder / "checkpoints" / "3").mkdir(parents=True)


def test_a_run_directory_with_checkpoints_belongs_to_its_config(tmp_path, capsys):
    run_directory.claim(LineConfig(RUN, slope=0.3), tmp_path, allow_changes=False)
    _with_checkpoint(tmp_path, LineConfig(RUN))  # nothing was trained before
    rate = dataclasses.replace(RUN, optimizer=OptimizerConfig(learning_rate=0.2))
    other = LineConfig(dataclasses.replace(rate, log=LogConfig(every=7)))
    with pytest.raises(ConfigError) as error:
        run_directory.claim(other, tmp_path, allow_changes=False)
    assert "(run.optimizer.learning_rate: 0.1 -> 0.2)" in str(error.value)
    assert "--allow_changes" in str(error.value)
    assert run_directory.read(tmp_path) == LineConfig(RUN)
    run_directory.claim(other, tmp_path, allow_changes=True)
    assert "0.1 -> 0.2" in capsys.readouterr().out
    assert run_directory.read(tmp_path) == other


def test_what_does_not_change_the_losses_may_change(tmp_path):
    evaluation = (dict(evaluator="likelihood", every=3),)
    _with_checkpoint(tmp_path, LineConfig(RUN, evaluation=evaluation))
    run = dataclasses.replace(RUN, log=LogConfig(every=7), mesh=MeshConfig(data=2))
    run_directory.claim(LineConfig(run), tmp_path, False)
    assert read_config(tmp_path)["run"]["log"]["every"] == 7


def test_a_default_that_changes_is_a_difference(tmp_path):
    """What a config file does not state is kept as it was when the run began."""
    _with_checkpoint(tmp_path, LineConfig(RUN))

    @dataclasses.dataclass(frozen=True)
    class Later(LineConfig):
        slope: float = 0.5

    with pytest.raises(ConfigError, match=r"\(slope: 0.1 -> 0.5\)"):
        run_directory.check(Later(RUN), tmp_path, allow_changes=False)
    assert run_directory.read(tmp_path).slope == 0.1


MODEL = dict(
    vocab_size=300, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2,
    num_kv_heads=2, head_dim=8,
)  # fmt: skip


@pytest.mark.parametrize(
    ("began", "attention"), [("2026-11-24T10:00:00+00:00", "reference"), ("2026-11-26", "auto")]
)
def test_a_directory_of_stated_keys_has_the_defaults_of_its_time(tmp_path, began, attention):
    stated = dict(
        task="pretrain",
        text_tokenizer="bytes",
        model=MODEL,
        data=dict(mixture=[dict(dataset="t", task="text")], batch_size=1, sequence_length=8),
        run=dict(steps=1),
        loss={},
        evaluation=dict(every=5, evaluators=["likelihood"]),
    )
    save_config(stated, tmp_path)
    (tmp_path / "starts.jsonl").write_text(json.dumps({"time": began}) + "\n")
    config = run_directory.read(tmp_path)
    assert config.model.attention == attention
    # Once it is written whole, its time plays no part.
    save_config(to_values(config), tmp_path)
    (tmp_path / "starts.jsonl").write_text(json.dumps({"time": "2026-11-20"}) + "\n")
    assert run_directory.read(tmp_path) == config


@pytest.mark.parametrize("decay", [0.97, 0.5])
def test_a_field_that_became_a_constant(tmp_path, decay):
    config = tiny_tasks.vision_task(
        VisionTokenizerConfig(), PixelConfig("p", groups=(PixelGroup("s", "stills", 64, 1),))
    ).config
    values = to_values(config)
    values["codebook"] |= {"usage_decay": decay}
    save_config(values, tmp_path)
    if decay == 0.97:
        assert run_directory.read(tmp_path) == config
    else:
        with pytest.raises(ConfigError, match="codebook.usage_decay does not exist"):
            run_directory.read(tmp_path)


def test_a_config_of_another_kind_is_named(tmp_path):
    save_config(dict(task="painting"), tmp_path)
    with pytest.raises(
        ConfigError, match="config.json: config.task: there is no task .* known: pretrain"
    ):
        run_directory.read(tmp_path)
    save_config(to_values(LineConfig(RUN)) | {"slop": 1.0}, tmp_path)
    with pytest.raises(ConfigError, match="config.slop does not exist; did you mean config.slope"):
        run_directory.read(tmp_path)
