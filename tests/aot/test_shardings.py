"""Where every weight of every named config lies, against golden files; and any mesh computes alike.

After an intended change of layout: UPDATE_GOLDEN=1 python -m pytest tests/test_shardings.py, and
look at the difference.
"""

import os
import pathlib

import jax
import numpy as np
import pytest
from paths import ROOT
from shrunken_twins import VOCAB, batch, named_configs, twin

from emu3_jax import sharding
from emu3_jax.aot.compile_and_report import program_of
from emu3_jax.config import load_config
from emu3_jax.sharding import MeshConfig
from emu3_jax.train.optimizer import OptimizerConfig, make_optimizer
from emu3_jax.train.step import abstract_state

GOLDEN = ROOT / "tests" / "golden" / "shardings"
KEY = jax.random.key(0)


def _abstract_state(file):
    config = load_config(file)
    if config.task == "pretrain" and "vocab_size" not in config.model:
        with config.unlocked():
            config.model.vocab_size = VOCAB  # else the data says it, which is not here
    program = program_of(config)
    mesh = sharding.make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])  # layouts name axes, not sizes
    run = program.task.config.run
    optimizer, _ = program.task.optimizer(run.optimizer, run.steps)
    return abstract_state(program.task, optimizer, KEY, mesh, ema=False)


def _lines(tree) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [
        f"{_name(path)} {leaf.dtype}{list(leaf.shape)} {tuple(leaf.sharding.spec)}"
        for path, leaf in leaves
    ]


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _golden(file) -> pathlib.Path:
    return GOLDEN / f"{pathlib.Path(file).stem}.txt"


@pytest.mark.parametrize("file", named_configs() + named_configs("vision_tokenizer"))
def test_every_weight_lies_where_the_golden_file_says(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    state = _abstract_state(file)
    found = "\n".join(_lines(state.params)) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.mkdir(parents=True, exist_ok=True)
        _golden(file).write_text(found)
    assert found.splitlines() == _golden(file).read_text().splitlines()
    _moments_follow_their_parameters(state)


def _moments_follow_their_parameters(state) -> None:
    layouts = {
        _name(path): x.sharding for path, x in jax.tree_util.tree_leaves_with_path(state.params)
    }
    moments = [
        (_name(path), x.sharding)
        for path, x in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if x.ndim
    ]
    owners = [next(p for p in layouts if name.endswith("/" + p)) for name, _ in moments]
    assert [layouts[p] for p in owners] == [layout for _, layout in moments]
    assert {owners.count(p) for p in layouts} <= {0, 2}  # a frozen parameter has none
    assert owners


def test_nearly_all_of_the_tokenizer_lies_in_pieces(monkeypatch):
    monkeypatch.chdir(ROOT)
    weights = jax.tree.leaves(_abstract_state("configs/vision_tokenizer_emu3.py").params)
    whole = sum(x.size for x in weights if not any(x.sharding.spec))
    assert whole < 0.01 * sum(x.size for x in weights)


def test_no_golden_file_is_left_over():
    names = {_golden(f).name for f in named_configs() + named_configs("vision_tokenizer")}
    assert {path.name for path in GOLDEN.iterdir()} == names


MESHES = (
    MeshConfig(data=2, fsdp=2, context=2, tensor=1),
    MeshConfig(data=1, fsdp=2, context=2, tensor=2),
)


def _loss_and_gradients(task, mesh):
    """Of the mean loss over the batch, on one mesh."""

    def mean(params, rows):
        loss = task.loss(params, {}, rows, KEY, 0)
        return loss.total / loss.weight

    optimizer, _ = make_optimizer(OptimizerConfig(), 10)
    with jax.set_mesh(mesh):
        state = abstract_state(task, optimizer, KEY, mesh, ema=False)
        rng = np.random.default_rng(1)
        params = jax.tree.map(
            lambda a: jax.device_put((0.1 * rng.normal(size=a.shape)).astype(a.dtype), a.sharding),
            state.params,
        )
        value, gradients = jax.jit(jax.value_and_grad(mean))(params, batch(task, mesh))
    return jax.device_get((value, gradients))


@pytest.mark.parametrize(
    "file", [f for f in named_configs() if f not in ("configs/transformer_folder.py",)]
)
def test_any_mesh_gives_the_loss_and_gradients_of_one_device(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    task = program_of(twin(file)).task
    one = sharding.make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    value, gradients = _loss_and_gradients(task, one)
    for config in MESHES:
        found, others = _loss_and_gradients(task, sharding.make_mesh(config))
        # A mean of 512 losses near 5: the order of the sums moves its last bits.
        np.testing.assert_allclose(found, value, rtol=1e-6, err_msg=str(config))
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(others), jax.tree.leaves(gradients), strict=True
        ):
            # float32 sums of 512 terms: 512^(1/2) roundings of 2^-24 of the largest, ten layers.
            limit = 512**0.5 * 10 * 2.0**-24 * np.abs(b).max()
            np.testing.assert_allclose(a, b, rtol=0, atol=limit, err_msg=f"{config} {path}")
