"""Adapters on a frozen base: any task, any mesh; checkpoints hold adapters alone."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from paths import ROOT
from tiny_lora import (
    MODEL,
    config_of,
    losses_of,
    train_lora,
    write_base,
    write_lora_run,
)
from token_records import GRAMMAR

from emu3_jax.config import ConfigError
from emu3_jax.evaluate import registry as evaluators
from emu3_jax.evaluate.evaluator import Subject
from emu3_jax.interop.exporting import PEFT, ExportOptions
from emu3_jax.interop.language import language_model, peft
from emu3_jax.train import weights
from emu3_jax.train.run.metrics import read_metrics
from emu3_jax.train.tasks import registry
from emu3_jax.train.tasks.language.lora_task import FROZEN


def _without_padding(params):
    ids = MODEL.vocab_size
    embedding, kernel = params["embed"]["embedding"][:ids], params["lm_head"]["kernel"][:, :ids]
    return {**params, "embed": {"embedding": embedding}, "lm_head": {"kernel": kernel}}


def _base(folder):
    return _without_padding(language_model.load(folder / "base")[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """base/, tokens/, config.py; whole/: six steps; parts/: the same, ended after two, resumed."""
    folder = tmp_path_factory.mktemp("lora")
    write_lora_run(folder)
    train_lora(folder, "whole")
    train_lora(folder, "parts", **{"run.steps": 2})
    train_lora(folder, "parts", allow_changes=True)
    return folder


def test_it_learns_and_goes_on_where_it_was(folder):
    whole, parts = losses_of(folder / "whole"), losses_of(folder / "parts")
    assert whole == parts and len(whole) == 6
    assert whole[6] < whole[1]


def test_checkpoints_hold_adapters_alone(folder):
    tree = (folder / "whole" / "checkpoints" / "6" / "state" / "_METADATA").read_text()
    assert "lora_a" in tree and "lora_b" in tree
    assert "kernel" not in tree and "embedding" not in tree and FROZEN not in tree
    size = sum(f.stat().st_size for f in (folder / "whole" / "checkpoints" / "6").rglob("*"))
    assert size < 200_000


def test_the_base_is_as_it_was_and_the_model_is_base_plus_adapters(folder):
    run = weights.open_run(folder / "whole")
    base, merged = _base(folder), _without_padding(run.variables["params"])
    for name in ("embed", "lm_head", "final_norm"):
        jax.tree.map(np.testing.assert_array_equal, merged[name], base[name])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), merged["layers"], base["layers"])
    assert moved["attention_norm"]["scale"] == moved["mlp_norm"]["scale"] == 0
    assert all(x > 0 for x in jax.tree.leaves((moved["attention"], moved["gate"], moved["down"])))
    adapters = run.variables["adapters"]["layers"]["gate"]
    product = np.einsum("lir,lro->lio", adapters["lora_a"], adapters["lora_b"])
    expected = base["layers"]["gate"]["kernel"] + 4.0 / 2 * product
    np.testing.assert_allclose(merged["layers"]["gate"]["kernel"], expected, atol=1e-6)


def test_evaluation_of_the_directory_is_that_of_the_training(folder):
    (entry,) = config_of(folder).evaluation
    (likelihood,) = evaluators.make((dict(entry),))
    bundle, label = weights.load_language_model(folder / "whole")
    found = likelihood.run(Subject(language_model=bundle, label=label)).metrics["nats_all"]
    logged = [row for row in read_metrics(folder / "whole") if row["step"] == 6]
    trained = {key: x for row in logged for key, x in row.items() if key.endswith("/nats_all")}
    assert list(trained.values()) == pytest.approx([found], rel=1e-6)


def test_a_task_of_a_user_takes_adapters(folder):
    changes = {"task": "tiny_lora:HalfTask", "run.steps": 1, "evaluation": ()}
    losses = losses_of(train_lora(folder, "half_task", **changes))
    assert losses[1] == pytest.approx(losses_of(folder / "whole")[1] / 2, rel=1e-6)


def test_the_base_may_be_stored_in_bfloat16(folder):
    run = train_lora(folder, "half", **{"model.param_dtype": "bfloat16", "run.steps": 2})
    stated = [(path / "lora_base.json").read_text() for path in (run, folder / "whole")]
    assert stated[0] == stated[1]  # the same base
    opened = weights.open_run(run)
    assert opened.variables["params"]["embed"]["embedding"].dtype == "bfloat16"
    assert opened.variables["adapters"]["layers"]["gate"]["lora_a"].dtype == "float32"
    wide = weights.open_run(run, dtype="float32").variables["params"]["layers"]["gate"]["kernel"]
    assert wide.dtype == "float32"
    whole = losses_of(folder / "whole")
    assert losses_of(run)[1] == pytest.approx(whole[1], rel=1e-2)


@pytest.mark.parametrize("mesh", ["fsdp", pytest.param("tensor", marks=pytest.mark.slow)])
def test_eight_devices_train_as_one(folder, mesh):
    sizes = {"fsdp": dict(data=2, fsdp=4), "tensor": dict(fsdp=4, tensor=2)}[mesh]
    changes = {f"run.mesh.{axis}": size for axis, size in sizes.items()}
    run = train_lora(folder, mesh, **changes, **{"run.steps": 3, "evaluation": ()})
    whole = losses_of(folder / "whole")
    assert losses_of(run) == pytest.approx({step: whole[step] for step in (1, 2, 3)}, rel=1e-4)


def test_rows_of_the_vocabulary_are_trained_whole(folder):
    first = GRAMMAR.vocab.visual_start
    end = first + 20
    run = train_lora(
        folder, "rows", **{"lora.rows": (first, end), "lora.targets": ("gate",),
                           "run.steps": 2},
    )  # fmt: skip
    merged, base = _without_padding(weights.open_run(run).variables["params"]), _base(folder)
    moved = np.abs(merged["embed"]["embedding"] - base["embed"]["embedding"]).max(axis=1)
    assert moved[first:end].any() and not moved[:first].any() and not moved[end:].any()
    moved = np.abs(merged["lm_head"]["kernel"] - base["lm_head"]["kernel"]).max(axis=0)
    assert moved[first:end].all() and not moved[:first].any() and not moved[end:].any()


def test_rows_go_to_peft_and_back(folder, tmp_path):
    rows = {"lora.rows": (3, 9), "lora.targets": ("gate",), "evaluation": ()}
    opened = weights.open_run(train_lora(folder, "rows_out", **rows, **{"run.steps": 2}))
    opened.task.export(tmp_path, opened.variables, ExportOptions(PEFT, "float32"))
    unchanged = {"lora.start": tmp_path, "run.steps": 1, "run.optimizer.learning_rate": 0.0}
    begun = weights.open_run(train_lora(folder, "rows_in", **rows, **unchanged)).variables
    for name in ("adapters", "params"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
                     begun[name], opened.variables[name])  # fmt: skip
    assert np.abs(begun["adapters"]["lm_head"]["rows"]).min() > 1e-5
    message = r"lora.start=.*: rows is \(3, 9\), lora.rows is \(3, 8\)$"
    _refused(folder, message, **rows | {"lora.start": tmp_path, "lora.rows": (3, 8)})


def _convert(*words, code=0):
    """The output of a conversion."""
    done = subprocess.run(
        [sys.executable, "-m", "emu3_jax.convert", "export", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def in_peft(folder):
    """The adapters of whole/ in PEFT's files."""
    words = (f"--model={folder / 'whole'}", f"--output={folder / 'peft'}", "--layout=peft")
    assert "peft: adapters, layout peft, 0.0 MB in float32" in _convert(*words)
    return folder / "peft"


def test_an_export_is_the_merged_model(folder, tmp_path):
    exported = tmp_path / "merged"
    _convert(f"--model={folder / 'whole'}", f"--output={exported}")
    found, _ = weights.load_language_model(exported)
    expected, _ = weights.load_language_model(folder / "whole")
    jax.tree.map(
        np.testing.assert_array_equal,
        _without_padding(found.variables["params"]),
        _without_padding(expected.variables["params"]),
    )
    assert expected.variables.keys() == {"params"}


def test_adapters_go_to_peft_and_back(folder, in_peft):
    stated = json.loads((in_peft / "adapter_config.json").read_text())
    assert (stated["r"], stated["lora_alpha"], stated["target_modules"]) == (
        2, 4, ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
    )  # fmt: skip
    assert stated["base_model_name_or_path"] == str(folder / "base")
    stored = peft.load(in_peft, MODEL).adapters
    trained = weights.open_run(folder / "whole").variables["adapters"]
    jax.tree.map(np.testing.assert_array_equal, stored, trained)
    changes = {"lora.start": in_peft, "run.steps": 1, "run.optimizer.learning_rate": 0.0}
    begun = weights.open_run(train_lora(folder, "continued", **changes)).variables["adapters"]
    # The average over steps that change nothing rounds once.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), begun, trained)


def test_only_a_run_with_adapters_has_the_layout_of_peft(folder, tmp_path):
    words = (f"--model={folder / 'base'}", f"--output={tmp_path / 'peft'}", "--layout=peft")
    said = _convert(*words, code=2)
    assert "--layout=peft writes the adapters of a run with the section lora; " in said
    assert not (tmp_path / "peft").exists()


def _refused(folder, message, **changes):
    with pytest.raises(ValueError, match=message) as raised:
        train_lora(folder, "refused", **changes)
    assert "\n" not in str(raised.value)
    assert not (folder / "refused").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora.targets": ("gates",)}, "lora.targets: 'gates' matches no linear layer; they are "
         "layers/attention/key, .*, layers/gate, layers/up, lm_head"),
        ({"lora.rank": 0}, "lora.rank must be 1 or more, got 0"),
        ({"lora.alpha": -1.0}, "lora.alpha must be above zero, got -1.0"),
        ({"lora.rows": (5, 100_000)}, "lora.rows ends at id 100000, the embedding has"),
        ({"lora.rows": (7,)}, r"lora.rows must be two ids, first < end, got \(7,\)"),
        ({"lora.rows": (1, 9), "lora.targets": ("*",)}, "lora.rows trains vectors of lm_head"),
        ({"lora.targets": ()}, "lora.targets and lora.rows are both empty"),
        ({"lora.ranks": 3}, "lora.ranks does not exist; did you mean lora.rank"),
        ({"start.shared_ids": 3}, "start.shared_ids is 3: the vectors of the other ids would be "
         "random and, with config.lora, stay so"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(folder, changes, message):
    _refused(folder, message, **changes)


def test_no_base_to_train_beside(folder):
    changes = {"start.transformer": "", "start.shared_ids": 0}
    _refused(folder, "config.lora trains adapters beside the weights of a trained", **changes)


def test_a_start_from_other_adapters(folder, in_peft, tmp_path):
    start = {"lora.start": str(in_peft)}
    message = "lora.start=.*: rank is 2, lora.rank is 3"
    _refused(folder, message, **start, **{"lora.rank": 3})
    message = "lora.start=.*: it adapts .*, layers/up, lora.targets name layers/gate$"
    _refused(folder, message, **start, **{"lora.targets": ("gate",)})
    other = write_base(tmp_path / "other", scale=0.3)
    message = "peft: its adapters belong to a base with the fingerprint [0-9a-f]{12}, the weights"
    _refused(folder, message, **start, **{"start.transformer": str(other)})


def test_a_base_that_is_another_by_now(folder, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(folder / "whole", moved / "whole")
    for name in ("tokens", "base"):
        shutil.copytree(folder / name, moved / name)
    config = json.loads((moved / "whole" / "config.json").read_text())
    config["start"]["transformer"] = str(write_base(moved / "base", scale=0.3))
    (moved / "whole" / "config.json").write_text(json.dumps(config))
    message = "whole: its adapters belong to a base with the fingerprint"
    with pytest.raises(ValueError, match=message):
        weights.open_run(moved / "whole")


def test_tasks_and_configs_with_adapters_can_be_sent_to_another_process(folder):
    config = registry.resolve(config_of(folder).to_dict())
    assert pickle.loads(pickle.dumps(config)) == config
    task = pickle.loads(pickle.dumps(registry.make(config, read_data=False)))
    assert task.config == config and type(task) is registry.find_for(config)


def test_a_task_of_another_kind():
    with pytest.raises(ConfigError, match="config.lora goes with tasks that train a language mo"):
        registry.resolve({"task": "vision_tokenizer", "lora": {}})
