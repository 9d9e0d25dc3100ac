"""The task dpo: what one step computes, on any mesh; its reference; runs that are resumed."""

import dataclasses
import pathlib

import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from preference_records import write_pairs
from shrunken_twins import twin
from tiny_policy import KEY, MODEL, started, steps_of, write_model
from token_records import GRAMMAR
from toy_task import assert_same_trees, leaves, run_config

from emu3_jax import sharding
from emu3_jax.aot.compile_and_report import compile_and_report, program_of
from emu3_jax.aot.topology import machine
from emu3_jax.config import ConfigError, to_values
from emu3_jax.data.tokens.preference_batches import PreferenceData, PreferenceEntry
from emu3_jax.models.language.lora import LoraConfig
from emu3_jax.sharding import MeshConfig
from emu3_jax.train import weights
from emu3_jax.train.__main__ import train_config
from emu3_jax.train.optimizer import OptimizerConfig
from emu3_jax.train.run.metrics import read_metrics
from emu3_jax.train.run_config import RunConfig
from emu3_jax.train.tasks import registry
from emu3_jax.train.tasks.language.dpo import DpoConfig, DpoTask, PolicyStart
from emu3_jax.train.tasks.language.preference_losses import PreferenceLoss
from emu3_jax.train.tasks.language.pretrain import LossConfig

LENGTH = 24
RATE = 0.01


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder with pairs/, and the models policy/ and other/."""
    folder = tmp_path_factory.mktemp("dpo")
    write_pairs(folder / "pairs")
    write_model(folder / "policy", 1)
    write_model(folder / "other", 2)
    return folder


def dpo_task(files, beta=0.5, model=MODEL, start=None, run=None, **preference) -> DpoTask:
    data = PreferenceData((PreferenceEntry(str(files / "pairs"), 0.2),), 8, LENGTH)
    start = start or PolicyStart(str(files / "policy"))
    run = run or RunConfig(steps=1)
    loss = PreferenceLoss(beta, **preference)
    return DpoTask(DpoConfig(model, data, run, "bytes", loss, LossConfig(16), start))


def one_step(task, mesh, accumulation=1, steps=1):
    """(metrics of the last step, params after it)."""
    metrics, _, state = steps_of(task, mesh, steps, RATE, accumulation)
    return metrics[-1], jax.device_get(state.params)


@pytest.fixture(scope="module")
def two_steps(files, first_device):
    """With another reference, so that nothing is zero."""
    start = PolicyStart(str(files / "policy"), str(files / "other"))
    return one_step(dpo_task(files, start=start, nll_weight=0.5), first_device, steps=2)


def test_policy_and_reference_begin_equal(files, first_device):
    metrics, _ = one_step(dpo_task(files), first_device)
    assert metrics["loss"] == pytest.approx(np.log(2), abs=1e-7)
    assert metrics["reward/chosen"] == metrics["reward/rejected"] == metrics["kl"] == 0
    assert metrics["reward/accuracies"] == 0  # a tie is a miss
    assert metrics["gradient_norm"] > 0.1  # the loss has a gradient through the chunks
    assert metrics["loss/nll"] > 1


def test_a_step_makes_the_chosen_likelier_than_the_rejected(files, first_device):
    metrics, _ = one_step(dpo_task(files), first_device, steps=3)
    assert metrics["reward/margins"] > 0.01 and metrics["loss"] < np.log(2)


def test_the_gradient_is_that_of_finite_differences(files, first_device):
    """In the direction of the gradient; a loss of nll alone has one too."""
    task = dpo_task(files, nll_weight=0.5)
    with jax.set_mesh(first_device):
        state = started(task, first_device, optax.sgd(RATE))
        batch = jax.device_put(next(task.batches(first_device)), task.batch_shardings(first_device))

        @jax.jit
        def value_of(params):
            loss = task.loss(params, state.model_state, batch, KEY, 0)
            return loss.total / loss.weight

        gradient = jax.grad(value_of)(state.params)
        norm = float(optax.tree.norm(gradient))

        def moved(length):
            change = jax.tree.map(lambda g: length / norm * g, gradient)
            return float(value_of(optax.apply_updates(state.params, change)))

        slope = (moved(2e-3) - moved(-2e-3)) / 4e-3
    assert slope == pytest.approx(norm, rel=5e-3)


@pytest.mark.parametrize(
    "sizes",
    [dict(fsdp=8), dict(data=2, fsdp=2, context=2), dict(data=2, fsdp=2, tensor=2)],
    ids=str,
)
def test_a_mesh_of_eight_devices_computes_the_same(files, two_steps, sizes):
    start = PolicyStart(str(files / "policy"), str(files / "other"))
    task = dpo_task(files, start=start, nll_weight=0.5)
    metrics, params = one_step(task, sharding.make_mesh(MeshConfig(**sizes)), steps=2)
    expected, expected_params = two_steps
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        # Sums over 8 x 2 rows of 23 targets, some 5 nats each, in float32.
        assert metrics[name] == pytest.approx(value, rel=2e-5, abs=2e-5), name
    for name, value in leaves(expected_params).items():
        np.testing.assert_allclose(leaves(params)[name], value, atol=2e-5, err_msg=name)


def test_micro_batches_add_up_without_nll(files, first_device):
    start = PolicyStart(str(files / "policy"), str(files / "other"))
    task = dpo_task(files, start=start)
    whole, parts = (one_step(task, first_device, accumulation=n) for n in (1, 4))
    for name in ("loss", "gradient_norm", "reward/margins", "loss/nll", "kl"):
        assert parts[0][name] == pytest.approx(whole[0][name], rel=1e-5), name


def test_there_is_no_dropout(files, first_device):
    found = [
        one_step(dpo_task(files, model=dataclasses.replace(MODEL, dropout=rate)), first_device)
        for rate in (0.0, 0.5)
    ]
    assert found[0][0] == found[1][0]


def test_beta_is_stated_in_both_units(files):
    note = f"beta 0.5 per image: on means over tokens 12, if an image fills its row of {LENGTH}"
    assert dpo_task(files).note == note
    assert dpo_task(files, beta=12.0, form="ipo").note == note


# ------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def runs(files, tmp_path_factory):
    """whole/, four steps; parts/, two and then two more; the final states of both."""
    folder = tmp_path_factory.mktemp("runs")
    for steps in (2, 4):
        parts = _train(files, folder / "parts", steps)
    return folder, {"whole": _train(files, folder / "whole"), "parts": parts}


def _train(files, path, steps=4, start=None):
    """What the training command does; the state after the last step."""
    constant = OptimizerConfig(learning_rate=0.01, warmup_steps=0, schedule="constant")
    run = run_config(steps=steps, every=2, optimizer=constant)
    config = ConfigDict(to_values(dpo_task(files, run=run, start=start).config))
    return train_config(config, str(path), allow_changes=True)


def test_a_resumed_run_ends_as_a_whole_one(runs):
    folder, states = runs
    assert_same_trees(states["parts"], states["whole"])
    rows = {n: [r["loss"] for r in read_metrics(folder / n)] for n in ("whole", "parts")}
    assert rows["whole"] == rows["parts"] and rows["whole"][-1] < rows["whole"][0]


def test_the_reference_is_in_no_checkpoint(runs):
    tree = (runs[0] / "whole" / "checkpoints" / "4" / "state" / "_METADATA").read_text()
    assert "lm_head" in tree and "reference" not in tree


def test_the_model_of_a_run_is_its_policy_and_needs_no_reference(runs, files, tmp_path):
    folder, states = runs
    moved = (files / "policy").rename(tmp_path / "away")
    try:
        bundle, _ = weights.load_language_model(folder / "whole")
    finally:
        moved.rename(files / "policy")
    assert_same_trees(bundle.variables["params"], states["whole"].params)
    assert bundle.learnt is None  # as of the model it began with


def test_a_reference_of_other_weights_is_refused_on_resume(files, tmp_path):
    _train(files, tmp_path, steps=2)
    with pytest.raises(ValueError, match="the run began with a reference of the weights") as found:
        _train(files, tmp_path, start=PolicyStart(str(files / "other")))
    assert f"{files / 'other'} now holds" in str(found.value)


# --------------------------------------------------------------------- stored log-probabilities


@pytest.fixture
def stored(files, tmp_path):
    """A start whose reference is stored in a new file."""
    names = (files / "policy", files / "other", tmp_path / "reference.npz")
    return PolicyStart(*map(str, names))


@pytest.mark.parametrize("sizes", [dict(fsdp=1), dict(data=2, fsdp=2, context=2)], ids=str)
def test_stored_log_probabilities_train_as_the_frozen_copy_does(files, stored, two_steps, sizes):
    count = 1 if sizes == dict(fsdp=1) else 8
    mesh = sharding.make_mesh(MeshConfig(**sizes), jax.devices()[:count])
    task = dpo_task(files, start=stored, nll_weight=0.5)
    metrics, params = one_step(task, mesh, steps=2)
    assert task.unsaved == () and set(task.init(KEY)) == {"params"}
    for name, value in two_steps[0].items():
        assert metrics[name] == pytest.approx(value, rel=2e-5, abs=2e-5), name
    for name, value in leaves(two_steps[1]).items():
        np.testing.assert_allclose(leaves(params)[name], value, atol=2e-5, err_msg=name)


def test_log_probabilities_are_computed_once(files, stored, first_device, capsys):
    with jax.set_mesh(first_device):
        first = next(dpo_task(files, start=stored).batches(first_device))
        # Both sides of twelve pairs, with and without their caption; some images are alike.
        words = "48 log-probabilities of the reference are computed into"
        assert words in capsys.readouterr().out
        again = next(dpo_task(files, start=stored).batches(first_device))
        assert "computed" not in capsys.readouterr().out
        np.testing.assert_array_equal(first["reference"], again["reference"])
        # New pairs are added to what is there.
        other = dpo_task(files, start=stored)
        write_pairs(files / "more", 14)
        entries = (PreferenceEntry(str(files / "more"), 0.2),)
        data = dataclasses.replace(other.config.data, mixture=entries)
        DpoTask(dataclasses.replace(other.config, data=data)).batches(first_device)
        assert "8 log-probabilities" in capsys.readouterr().out


def test_stored_log_probabilities_of_other_weights_are_refused(files, stored, first_device):
    with jax.set_mesh(first_device):
        dpo_task(files, start=stored).batches(first_device)
        same = dataclasses.replace(stored, reference="")
        with pytest.raises(ValueError, match="log-probabilities of a reference of the") as found:
            dpo_task(files, start=same).batches(first_device)
        assert f"but {files / 'policy'} holds" in str(found.value)
        in_bfloat16 = dataclasses.replace(MODEL, dtype="bfloat16")
        with pytest.raises(ValueError, match="in float32, but .* in bfloat16"):
            dpo_task(files, start=stored, model=in_bfloat16).batches(first_device)


def test_a_file_that_holds_none_is_refused(files, stored, first_device):
    for content in (b"", b"PK nothing", b"{}"):
        pathlib.Path(stored.log_probabilities).write_bytes(content)
        with jax.set_mesh(first_device), pytest.raises(ValueError, match="cannot be read as log"):
            dpo_task(files, start=stored).batches(first_device)


# -------------------------------------------------------------------------------- bad input


def test_a_start_is_needed(files):
    with pytest.raises(ConfigError, match="start.transformer is empty"):
        dpo_task(files, start=PolicyStart()).initial_weights()


def test_pairs_of_another_vision_tokenizer_than_the_models_are_refused(files, tmp_path):
    path = write_model(tmp_path, vision_fingerprint="v2")
    for start in (PolicyStart(path), PolicyStart(str(files / "policy"), path)):
        with pytest.raises(ValueError, match="vision tokenizer") as found:
            dpo_task(files, start=start).initial_weights()
        assert "v1" in str(found.value) and "v2" in str(found.value)


def test_the_config_is_complete_and_its_vocabulary_that_of_the_pairs(files):
    values = to_values(dpo_task(files).config)
    del values["model"]["vocab_size"]
    assert DpoTask.resolve(values).model.vocab_size == GRAMMAR.vocab.size
    del values["preference"]["beta"]
    with pytest.raises(ConfigError, match="beta"):
        DpoTask.resolve(values)


# ---------------------------------------------------------------------------------- ahead of time


@pytest.mark.parametrize("file", ["", "reference.npz"])
def test_its_step_is_compiled_ahead_of_time(file, capsys):
    config = twin("configs/post_training/dpo.py")
    config.start.log_probabilities = file
    found = compile_and_report(
        config, "train", machine("cpu:8"), search=False, with_estimate=False, plan_only=True
    )
    assert found.fits and "train on 8 chips" in capsys.readouterr().out
    task = program_of(config).task
    assert task.with_layers(1).model.num_layers == 1
    assert task.units_per_batch() == 2 * 8 * 64


@pytest.mark.parametrize("base", ["", "int8"])
@pytest.mark.parametrize("stored", [False, True], ids=["frozen reference", "stored"])
def test_adapters_beside_a_frozen_policy(files, first_device, tmp_path, stored, base):
    file = str(tmp_path / "stored.npz") if stored else ""
    plain = dpo_task(files, start=PolicyStart(str(files / "policy"), log_probabilities=file)).config
    fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    adapted = registry.find_for({"task": "dpo", "lora": {}})
    task = adapted(adapted.Config(**fields, lora=LoraConfig(rank=2, alpha=4.0, base=base)))
    metrics, adapters = one_step(task, first_device, steps=2)
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(adapters)}
    assert names == {"lora_a", "lora_b"}
    assert metrics["loss"] < np.log(2) - 1e-4  # of the second step: the first began equal
    assert metrics["reward/margins"] > 0
