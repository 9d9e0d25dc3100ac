"""Adapters on a base whose kernels are int8: in training alone, whatever the start."""

import dataclasses
import json
from unittest import mock

import flax.traverse_util
import jax
import numpy as np
import pytest
from tiny_lora import (
    MODEL,
    config_of,
    losses_of,
    run_config,
    train_lora,
    write_base,
    write_lora_run,
)

from emu3_jax import sharding
from emu3_jax.interop.language import language_model
from emu3_jax.models.language import int8, lora
from emu3_jax.sharding import MeshConfig
from emu3_jax.train import weights
from emu3_jax.train.initial_state import replaced
from emu3_jax.train.step import abstract_state, init_state
from emu3_jax.train.tasks import registry
from emu3_jax.train.tasks.language import frozen_base
from emu3_jax.train.tasks.language.lora_task import FROZEN
from emu3_jax.train.tasks.language.pretrain import PretrainTask

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """base/, tokens/, config.py; whole/: six steps; parts/: the same, ended after two, resumed."""
    folder = tmp_path_factory.mktemp("int8")
    write_lora_run(folder, **{"lora": dict(rank=2, alpha=4.0, base="int8")})
    train_lora(folder, "whole")
    train_lora(folder, "parts", **{"run.steps": 2})
    train_lora(folder, "parts", allow_changes=True)
    return folder


def test_it_learns_near_the_float_base_and_goes_on_where_it_was(folder):
    whole, parts = losses_of(folder / "whole"), losses_of(folder / "parts")
    assert whole == parts and len(whole) == 6
    assert whole[6] < whole[1]
    floats = train_lora(folder, "floats", **{"lora.base": "", "run.steps": 1, "evaluation": ()})
    first = losses_of(floats)[1]
    assert 0 < abs(whole[1] - first) < 0.02 * first
    stated = [(run / "lora_base.json").read_text() for run in (floats, folder / "whole")]
    assert stated[0] == stated[1]  # of the weights before they are rounded to int8


def test_checkpoints_hold_adapters_alone(folder):
    tree = (folder / "whole" / "checkpoints" / "6" / "state" / "_METADATA").read_text()
    assert "lora_a" in tree and "lora_b" in tree
    assert "kernel" not in tree and "embedding" not in tree and FROZEN not in tree


@pytest.mark.parametrize("mesh", ["fsdp", "tensor"])
def test_eight_devices_train_as_one(folder, mesh):
    sizes = {"fsdp": dict(data=2, fsdp=4), "tensor": dict(fsdp=4, tensor=2)}[mesh]
    changes = {f"run.mesh.{axis}": size for axis, size in sizes.items()}
    run = train_lora(folder, mesh, **changes, **{"run.steps": 3, "evaluation": ()})
    whole = losses_of(folder / "whole")
    assert losses_of(run) == pytest.approx({step: whole[step] for step in (1, 2, 3)}, rel=1e-4)
    stated = [(path / "lora_base.json").read_text() for path in (run, folder / "whole")]
    assert stated[0] == stated[1]


def test_a_directory_is_the_adapters_on_the_base_of_the_files(folder):
    opened = weights.open_run(folder / "whole").variables
    base = language_model.load(folder / "base")[1]
    assert all(np.any(x) for x in jax.tree.leaves(opened["adapters"]))  # B began at zero
    adapters = opened["adapters"]["layers"]["down"]
    product = np.einsum("lir,lro->lio", adapters["lora_a"], adapters["lora_b"])
    expected = base["layers"]["down"]["kernel"] + 4.0 / 2 * product
    np.testing.assert_allclose(opened["params"]["layers"]["down"]["kernel"], expected, atol=1e-6)
    in_bf16 = weights.open_run(folder / "whole", dtype="bfloat16").variables["params"]
    assert in_bf16["layers"]["down"]["kernel"].dtype == "bfloat16"


def _variables(task, mesh):
    """The variables that a fresh run trains with."""
    optimizer, _ = task.optimizer(task.config.run.optimizer, 1)
    state = init_state(task, optimizer, KEY, mesh, ema=False)
    begin = task.initial_weights()
    return replaced({"params": state.params, **state.model_state}, begin)


@pytest.fixture(scope="module")
def task(folder):
    return registry.make(registry.resolve(config_of(folder).to_dict()))


@pytest.fixture(scope="module")
def one_device():
    return sharding.make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])


@pytest.fixture(scope="module")
def variables(task, one_device):
    with jax.set_mesh(one_device):
        return _variables(task, one_device)


def test_what_is_stored_and_what_is_evaluated_in_training(folder, task, variables):
    frozen = variables[FROZEN]
    base = language_model.load(folder / "base")[1]
    kinds = flax.traverse_util.flatten_dict(frozen["layers"])
    for path, x in kinds.items():
        if path[-1] == int8.KERNEL:
            original = base["layers"]
            for name in path:
                original = original[name]
            scale = np.asarray(kinds[*path[:-1], int8.SCALE], np.float64)
            away = np.abs(np.asarray(x, np.float64) * scale - original)
            assert x.dtype == np.int8 and np.all(away <= scale * 0.501)
        else:
            assert x.dtype == np.float32
    for name in ("embed", "lm_head", "final_norm"):
        assert all(x.dtype == np.float32 for x in jax.tree.leaves(frozen[name]))
    merged = task.model_variables(task.model_parts(variables))["params"]["layers"]["gate"]["kernel"]
    expected = int8.dequantized(frozen, "float32")["layers"]["gate"]["kernel"]
    np.testing.assert_array_equal(merged, expected)  # B is zero


def test_one_kind_of_kernels_at_a_time_exists_as_floats(task, one_device):
    sizes, before = [], {id(x) for x in jax.live_arrays()}
    round_one = int8.quantized

    def counted(*arguments):
        made = [x for x in jax.live_arrays() if id(x) not in before and x.ndim > 2]
        sizes.append(sum(x.size for x in made if x.dtype == np.float32 and x.shape[-1] > 2
                         and x.shape[1] > 2))  # fmt: skip
        return round_one(*arguments)

    with jax.set_mesh(one_device), mock.patch.object(int8, "quantized", counted):
        kept = _variables(task, one_device)
    del kept
    D, F = MODEL.hidden_size, MODEL.intermediate_size
    assert len(sizes) == 7 and max(sizes) == D * F  # one layer here


class OwnStart(PretrainTask):
    """A task of a user, whose start knows nothing of int8: it needs float arrays."""

    def initial_weights(self):
        own = super().initial_weights()

        def begin(variables):
            assert all(isinstance(x, jax.Array) and x.dtype == np.float32
                       for x in jax.tree.leaves(variables["params"]))  # fmt: skip
            return own(variables)

        return begin


def test_other_starts_give_the_same(folder, tmp_path, task, variables, one_device):
    config = config_of(folder, task=f"{__name__}:OwnStart")
    own = registry.make(registry.resolve(config.to_dict()))
    plain = config_of(folder, **{"run.steps": 1, "run.optimizer.learning_rate": 0.0,
                               "evaluation": (), "run.ema_decay": 0.0})  # fmt: skip
    with plain.unlocked():
        del plain["lora"]
    start = {"start.transformer": run_config(plain, tmp_path / "run")}
    config = config_of(folder, **start)
    of_run = registry.make(registry.resolve(config.to_dict()))
    with jax.set_mesh(one_device):
        for other in (own, of_run):
            found = _variables(other, one_device)
            jax.tree.map(np.testing.assert_array_equal, found[FROZEN], variables[FROZEN])
            assert other.fingerprint == task.fingerprint


def test_rows_of_the_vocabulary_are_floats_and_can_be_trained(folder):
    rows = {"lora.rows": (1, 9), "run.steps": 2, "evaluation": ()}
    run = weights.open_run(train_lora(folder, "rows", **rows)).variables["params"]
    base, ids = language_model.load(folder / "base")[1], MODEL.vocab_size
    found, before = (x["lm_head"]["kernel"][:, :ids] for x in (run, base))
    moved = np.abs(found - before).max(axis=0)
    assert moved[1:9].all() and not moved[:1].any() and not moved[9:].any()


def test_another_base_is_refused(folder, tmp_path):
    config = json.loads((folder / "whole" / "config.json").read_text())
    task = registry.make(registry.resolve(config))
    task.check_beside(folder / "whole")
    other = write_base(tmp_path / "other", scale=0.3)
    start = dataclasses.replace(task.config.start, transformer=str(other))
    task.config = dataclasses.replace(task.config, start=start)
    mesh = sharding.make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    with (
        jax.set_mesh(mesh),
        pytest.raises(ValueError, match="whole: its adapters belong to a base with the fingerpri"),
    ):
        _variables(task, mesh)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("int4", "lora.base is 'int4' .did you mean int8..; expected 'int8', or '' for the type"),
        ("bfloat16", "lora.base is 'bfloat16'; expected 'int8', or '' for the type that model.par"),
    ],
)
def test_unknown_types_of_the_base(folder, base, message):
    with pytest.raises(ValueError, match=message) as raised:
        train_lora(folder, "refused", **{"lora.base": base})
    assert "\n" not in str(raised.value) and not (folder / "refused").exists()


def test_the_layout_is_known_before_anything_is_read(task, one_device):
    optimizer, _ = task.optimizer(task.config.run.optimizer, 1)
    layers = abstract_state(task, optimizer, KEY, one_device, False).model_state[FROZEN]["layers"]
    output = layers["attention"]["output"]
    assert output["kernel"].dtype == np.int8 and output["kernel_scale"].shape == (1, 1, 1, 16)
    assert lora.A not in output
    assert frozen_base.ROUNDED == "bfloat16"
