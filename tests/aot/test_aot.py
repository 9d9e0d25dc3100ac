"""Compiling for absent machines: the training step, what crosses the mesh, advice."""

import collections
import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from shrunken_twins import LENGTH, ROWS, twin
from toy_task import Numbered

from emu3_jax import sharding
from emu3_jax.aot import advice, estimate, hlo, report
from emu3_jax.aot import compile_and_report as command
from emu3_jax.aot.compile_and_report import compile_and_report, program_of
from emu3_jax.aot.topology import Machine, machine
from emu3_jax.config import ConfigError, load_config
from emu3_jax.models import cpu
from emu3_jax.models.language import cross_entropy
from emu3_jax.sharding import MeshConfig
from emu3_jax.train import loop
from emu3_jax.train import program as train_program

STAGE1, STAGE2 = "configs/emu3_8b_stage1.py", "configs/emu3_8b_stage2.py"

TEXT = """HloModule jit_f

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %a = bf16[8,64]{1,0} all-gather(%x), replica_groups=[1,8]<=[8], metadata={op_name="jit(f)/gate"}
  ROOT %t = (s32[], f32[8]) tuple(%i, %y)
}

%cond.2 (p: (s32[], f32[8])) -> pred[] {
  %c = s32[] constant(3)
  ROOT %lt = pred[] compare(%i, %c), direction=LT
}

%all-reduce-scatter.3 (p: f32[16]) -> f32[2] {
  %r = f32[16]{0} all-reduce(%p), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}

%fused_computation.4 (p: f32[8]) -> (f32[8], f32[32]) {
  %b = f32[32]{0} all-gather(%p), channel_id=5, replica_groups=[1,8]<=[8]
}

%async_collective_fusion.5 (p: f32[8]) -> f32[32] {
  %k = f32[32]{0} all-gather(%p), channel_id=5, replica_groups=[1,8]<=[8]
}

%fused_computation.6 (p: f32[8]) -> f32[32] {
  %e = f32[32]{0} all-gather(%p), channel_id=5, replica_groups=[1,8]<=[8]
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %async-collective-start = (f32[8], f32[32]) fusion(%p), calls=%fused_computation.4
  %fusion.5 = f32[32]{0} fusion(%p), kind=kOutput, calls=%async_collective_fusion.5
  %async-collective-done = f32[32]{0} fusion(%p), kind=kCustom, calls=%fused_computation.6
  %w = (s32[], f32[8]) while(%init), condition=%cond.2, body=%body.1
  %s = f32[4]{0} reduce-scatter(%q), replica_groups={{0,1},{2,3}}, dimensions={0}, to_apply=%add
  %g = (f32[2]{0}, f32[16]{0}) all-gather-start(%z), replica_groups=[1,8]<=[8]
  %h = f32[16]{0} all-gather-done(%g)
  ROOT %f = f32[2]{0} fusion(%h), kind=kCustom, calls=%all-reduce-scatter.3
}
"""


def test_collectives_are_counted_with_loops_and_sized_by_their_larger_side():
    found = {(c.kind, c.dtype, c.shape, c.bytes, c.times) for c in hlo.collectives(TEXT)}
    assert found == {
        ("all-gather", "bf16", (8, 64), 1024, 3),
        ("reduce-scatter", "f32", (4,), 32, 1),
        ("all-gather", "f32", (16,), 64, 1),
        ("all-gather", "f32", (32,), 128, 1),
        ("reduce-scatter", "f32", (16,), 64, 1),
    }
    assert report.summed(hlo.collectives(TEXT))["all-gather"]["count"] == 5


def test_a_program_without_the_mesh_moves_nothing():
    text = jax.jit(lambda x: x @ x).lower(jnp.ones((4, 4))).compile().as_text()
    assert hlo.collectives(text) == []


def _on(file, monkeypatch, mesh, **model):
    """A twin's program and its compiled step on eight virtual devices."""
    config = twin(file, **model)
    with config.unlocked():
        config.run.mesh = dataclasses.asdict(mesh)
    program, eight = program_of(config), machine("cpu:8")
    return program, program.lower(eight.devices).compile()


@pytest.mark.parametrize(
    "file, mesh, group",
    [
        (STAGE1, MeshConfig(data=2, fsdp=4), 2),
        (STAGE2, MeshConfig(fsdp=2, context=4), 8),
    ],
    ids=["stage 1 over fsdp", "stage 2 over context"],
)
def test_only_weights_are_gathered_and_no_more_than_once_a_use(file, mesh, group, monkeypatch):
    monkeypatch.setattr(cross_entropy, "GROUP", group)
    program, compiled = _on(file, monkeypatch, mesh)
    config, chunk = program.task.config.model, program.task.config.loss.chunk_tokens
    abstract = jax.eval_shape(program.task.init, jax.random.key(0))["params"]
    layer = {x.shape[1:] for x in jax.tree.leaves(nn.unbox(abstract["layers"]))}
    columns = config.padded_vocab_size // group
    counts = collections.Counter()
    for one in hlo.collectives(compiled.as_text()):
        assert one.kind != "collective-permute", one
        assert not {config.hidden_size, config.padded_vocab_size} <= {*one.shape}, one
        if one.kind != "all-gather" or one.dtype == "s32":
            continue  # ids are as small as nothing
        if "jvp()/shard_map/while" in one.source:  # the loss shares the positions of a chunk
            assert one.bytes <= 4 * group * chunk * config.hidden_size, one
            continue
        counts[one.shape] += one.times
    # A group's part of the vocabulary matrix once; it has no other to gather from where it is all.
    assert counts.pop((config.hidden_size, columns), 0) == (8 // mesh.data > group)
    # Over context the keys and the values of whole rows, forward and again backward.
    rows = ROWS // (mesh.data * mesh.fsdp)
    heads = (rows, LENGTH, config.num_kv_heads, config.head_dim)
    assert counts.pop(heads, 0) == (2 * 2 * config.num_layers if mesh.context > 1 else 0)
    # Each matrix of a layer forward and again backward, and no other activation.
    assert counts.keys() <= layer
    assert sum(counts.values()) == 2 * 7 * config.num_layers


def test_state_is_donated_and_comes_back_in_its_own_memory(monkeypatch):
    program, compiled = _on(STAGE1, monkeypatch, MeshConfig(fsdp=8))
    memory = compiled.memory_analysis()
    batch = 8 * 4 * ROWS * LENGTH
    assert memory.alias_size_in_bytes > memory.argument_size_in_bytes - batch
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 8192  # metrics


class _StopError(Exception):
    pass


def test_it_compiles_the_step_that_train_runs(monkeypatch, tmp_path):
    config = twin(STAGE1)
    with config.unlocked():
        config.run.update(accumulation=2, ema_decay=0.9, seed=3)
        config.run.mesh = dict(data=2, fsdp=4, context=1, tensor=1)
    program, calls = program_of(config), []

    def caught(task, optimizer, state, mesh, *, key, **options):
        abstract = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state)
        calls.append((task, abstract, mesh, jax.random.key_data(key).tolist(), options))
        raise _StopError

    for module in (loop, train_program):
        monkeypatch.setattr(module, "jitted_train_step", caught)
    monkeypatch.setattr(program.task, "batches", lambda mesh: Numbered())
    monkeypatch.setattr(program.task, "initial_weights", lambda: None)
    with pytest.raises(_StopError):
        loop.train(program.task, program.task.config.run, tmp_path / "run")
    with pytest.raises(_StopError):
        program.lower(machine("cpu:8").devices)
    trained, compiled = calls
    assert trained == compiled
    assert trained[-1] == {"accumulation": 2, "accumulated_mean": "tokens", "ema_decay": 0.9}


def test_what_does_not_fit_ends_with_advice(capsys):
    target = machine("cpu:8", hbm_gib=1e-5)
    found = compile_and_report(twin(STAGE1), "train", target, search=False, with_estimate=False)
    assert not found.fits
    *_, sentence, line = capsys.readouterr().out.strip().splitlines()
    assert "the state alone is too large" in sentence
    found = json.loads(line)
    assert found["fits"] is False
    assert set(found) == {f.name for f in dataclasses.fields(report.Report)}


def _report(gib, limit=10.0):
    return report.Report(0.0, gib, gib, limit, gib <= limit, 0.0, {}, 0.0)


def test_without_an_estimate_the_rest_is_printed(monkeypatch, capsys):
    def refuse(program, target):
        raise estimate.NoEstimateError("why not")

    monkeypatch.setattr(command, "estimate", refuse)
    monkeypatch.setattr(command, "examine", lambda *args, **kwargs: _report(1.0))
    compile_and_report(twin(STAGE1), "train", machine("cpu:8"), search=False, with_estimate=True)
    *_, sentence, line = capsys.readouterr().out.strip().splitlines()
    assert sentence == "no estimate: why not"
    assert json.loads(line)["compiler_estimate_s"] is None


def _fake(cost):
    """Compiles nothing: memory by policy and rows of a batch."""

    def compile_for(program, target):
        c = program.task.config
        return _report(cost[c.model.remat] * c.data.batch_size / ROWS)

    return compile_for


@pytest.mark.parametrize(
    "cost, remat, rows",
    [
        ({"none": 3.0, "dots": 2.0, "attention": 1.5, "full": 1.0}, "none", 3 * ROWS),
        ({"none": 99.0, "dots": 11.0, "attention": 1.5, "full": 1.0}, "attention", 6 * ROWS),
        ({"none": 99.0, "dots": 99.0, "attention": 99.0, "full": 10.0}, "full", ROWS),
    ],
)
def test_search_takes_the_cheapest_policy_and_then_the_largest_batch(cost, remat, rows):
    program, eight = program_of(twin(STAGE1)), machine("cpu:8")
    found, best = advice.search(program, eight, _fake(cost), say=lambda line: None)
    assert found.fits
    assert (best.task.config.model.remat, best.task.config.data.batch_size) == (remat, rows)


def test_search_ends_with_the_config_that_fails_least_where_nothing_fits():
    program, eight = program_of(twin(STAGE1)), machine("cpu:8")
    cost = dict.fromkeys(advice.CHEAPEST_FIRST, 99.0)
    found, last = advice.search(program, eight, _fake(cost), say=lambda line: None)
    assert not found.fits and last.task.config.model.remat == "full"
    assert "take more chips" in advice.what_to_change(found, last, eight)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model": {"remat": "none"}}, "model.remat=full"),
        ({"model": {"remat": "full"}, "data": {"batch_size": 16}}, "2 rows at a time"),
    ],
)
def test_advice_names_the_key_to_change(change, words):
    program = program_of(twin(STAGE1)).changed(**change)
    assert words in advice.what_to_change(_report(11.0), program, machine("cpu:8"))


@pytest.mark.parametrize(
    "name, slices, words",
    [
        ("v5p:4x4", 1, "expected one of v4"),
        ("v9:4x4x4", 1, "expected one of v4"),
        ("cpu:0", 1, "expected one of v4"),
        ("cpu:8", 2, "is for TPUs"),
        ("v5p:4x4x4", 0, "must be 1 or more"),
        ("cpu:9", 1, "this process has 8"),
    ],
)
def test_a_machine_that_cannot_be_is_refused(name, slices, words):
    assert jax.device_count() == 8  # JAX is initialised: their number is fixed
    with pytest.raises(ValueError, match=words):
        machine(name, slices)


def test_without_the_tpu_compiler_its_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="requirements-aot.txt"):
        machine("v5p:4x4x4")


def test_data_runs_over_slices_and_a_mesh_that_does_not_is_refused():
    class Device:
        platform, device_kind, process_index = "cpu", "cpu", 0

        def __init__(self, number):
            self.id, self.slice_index = number, number // 4

    devices = [Device(i) for i in range(8)]
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), devices)
    for index, grid in enumerate(mesh.devices):
        assert {device.slice_index for device in grid.flat} == {index}
    with pytest.raises(ValueError, match="mesh.data=1 must be a multiple of the 2 slices"):
        sharding.make_mesh(MeshConfig(fsdp=8), devices)


def test_a_machine_knows_its_limit():
    assert machine("cpu:8").hbm_gib is None
    assert machine("cpu:8", hbm_gib=16.0).hbm_gib == 16.0
    assert isinstance(machine("cpu:4"), Machine) and len(machine("cpu:4").devices) == 4


def test_the_tokenizer_trains_and_tokenizes_and_a_transformer_samples_and_scores(monkeypatch):
    config = load_config("configs/vision_tokenizer_nano.py")
    with config.unlocked():
        config.model.update(ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(1,))
        stills = dict(name="stills", kind="stills", size=8, count=2)
        clips = dict(name="clips", kind="clips", size=8, count=2, frames=2)
        config.data.groups = (stills, clips)
        config.run.mesh = dict(data=1, fsdp=2, context=1, tensor=1)
    two = machine("cpu:2")
    trained = program_of(config).lower(two.devices)
    assert "scatter" in trained.as_text()
    monkeypatch.setattr(cpu, "LARGE_FRAME", 0)  # one CPU would go frame by frame
    tokenized = program_of(config, "tokenize").lower(two.devices)
    codes = jax.tree.leaves(tokenized.out_info)
    assert [(c.shape, c.dtype) for c in codes] == [((2, 1, 4, 4), jnp.int32)]
    assert not hlo.collectives(tokenized.compile().as_text())
    config = twin(STAGE1, vocab_size=184622)
    with config.unlocked():
        config.run.mesh = dict(data=1, fsdp=2, context=1, tensor=1)
    _, _, rows = program_of(config, "sample").lower(two.devices).out_info
    assert (rows.new_BN.shape, rows.new_BN.dtype) == ((2, 8193), jnp.int32)
    scored = program_of(config, "evaluate").lower(two.devices).out_info
    assert (scored.shape, scored.dtype) == ((32, LENGTH), jnp.float32)


@pytest.mark.parametrize(
    "name, file, words",
    [
        ("tokenize", STAGE1, "--program=tokenize is not a program of the task pretrain, which has"),
        ("sample", "configs/vision_tokenizer_nano.py", "vision_tokenizer, which has train, token"),
    ],
)
def test_a_program_of_another_task_is_refused(name, file, words):
    with pytest.raises(ConfigError, match=words):
        program_of(load_config(file), name)


def test_sampling_knows_the_released_vocabulary_only():
    with pytest.raises(ConfigError, match="model.vocab_size is 250"):
        program_of(twin(STAGE1), "sample").lower(machine("cpu:8").devices)
