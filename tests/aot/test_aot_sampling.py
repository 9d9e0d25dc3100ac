"""Sampling ahead of time: its options, the least that a pass reads, and what a loop moves."""

import jax
import numpy as np
import pytest
from shrunken_twins import twin

from emu3_jax.aot import decoding_step, traffic
from emu3_jax.aot.compile_and_report import program_of
from emu3_jax.aot.hlo import UnreadableError
from emu3_jax.aot.topology import machine
from emu3_jax.config import ConfigError

STAGE1 = "configs/emu3_8b_stage1.py"
BOTH = ("weights", "cache")


@pytest.fixture(autouse=True, scope="module")
def eight_devices():
    """`machine` would else set how many there are for all tests."""
    assert len(jax.devices()) == 8


def config_of(tensor=1):
    config = twin(STAGE1, vocab_size=184622)
    with config.unlocked():
        config.run.mesh = dict(data=1, fsdp=1, context=1, tensor=tensor)
    return config


PROGRAM = """
%update (p0: bf16[8,64,4], p1: bf16[8,1,4], p2: s32[]) -> bf16[8,64,4] {
  %p0 = bf16[8,64,4]{2,1,0} parameter(0)
  %p1 = bf16[8,1,4]{2,1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %written = bf16[8,64,4]{2,1,0} dynamic-update-slice(%p0, %p1, %zero, %p2, %zero)
}

%renamed (p0: s8[3,16,16]) -> s8[3,16,16] {
  %p0 = s8[3,16,16]{2,1,0} parameter(0)
  ROOT %same = s8[3,16,16]{2,1,0} bitcast(%p0)
}

%product (stack: s8[3,16,16], x: bf16[2,16], at: s32[]) -> bf16[2,16] {
  %stack = s8[3,16,16]{2,1,0} parameter(0)
  %x = bf16[2,16]{1,0:S(1)} parameter(1)
  %at = s32[] parameter(2)
  %zero = s32[] constant(0)
  %same = s8[3,16,16]{2,1,0} fusion(%stack), kind=kLoop, calls=%renamed
  %layer = s8[1,16,16]{2,1,0} dynamic-slice(%same, %at, %zero, %zero)
  %kernel = s8[16,16]{1,0} bitcast(%layer)
  ROOT %y = bf16[2,16]{1,0} convolution(%x, %kernel), dim_labels=bf_io->bf
}

%layers (c: (s32[], s8[3,16,16], bf16[2,16])) -> (s32[], s8[3,16,16], bf16[2,16]) {
  %c = (s32[], s8[3,16,16]{2,1,0}, bf16[2,16]{1,0:S(1)}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %stack = s8[3,16,16]{2,1,0} get-tuple-element(%c), index=1
  %x = bf16[2,16]{1,0:S(1)} get-tuple-element(%c), index=2
  %y = bf16[2,16]{1,0:S(1)} fusion(%stack, %x, %i), kind=kOutput, calls=%product
  ROOT %t = (s32[], s8[3,16,16]{2,1,0}, bf16[2,16]{1,0:S(1)}) tuple(%i, %stack, %y)
}

%few (c: (s32[], s8[3,16,16], bf16[2,16])) -> pred[] {
  %c = (s32[], s8[3,16,16]{2,1,0}, bf16[2,16]{1,0:S(1)}) parameter(0)
  %three = s32[] constant(3)
  %i = s32[] get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%i, %three), direction=LT
}

%step (s: (s8[3,16,16], bf16[8,64,4], bf16[2,16])) -> (s8[3,16,16], bf16[8,64,4], bf16[2,16]) {
  %s = (s8[3,16,16]{2,1,0}, bf16[8,64,4]{2,1,0}, bf16[2,16]{1,0:S(1)}) parameter(0)
  %kernels = s8[3,16,16]{2,1,0} get-tuple-element(%s), index=0
  %cache = bf16[8,64,4]{2,1,0} get-tuple-element(%s), index=1
  %h = bf16[2,16]{1,0:S(1)} get-tuple-element(%s), index=2
  %begin = s32[] constant(0)
  %in = (s32[], s8[3,16,16]{2,1,0}, bf16[2,16]{1,0:S(1)}) tuple(%begin, %kernels, %h)
  %out = (s32[], s8[3,16,16]{2,1,0}, bf16[2,16]{1,0:S(1)}) while(%in), condition=%few, body=%layers
  %end = bf16[2,16]{1,0:S(1)} get-tuple-element(%out), index=2
  %new = bf16[8,1,4]{2,1,0:S(1)} custom-call(%end), custom_call_target="Some"
  %kept = bf16[8,64,4]{2,1,0} fusion(%cache, %new, %begin), kind=kLoop, calls=%update
  %copied = bf16[8,64,4]{2,0,1} copy(%kept)
  ROOT %next = (s8[3,16,16]{2,1,0}, bf16[8,64,4]{2,1,0}, bf16[2,16]{1,0:S(1)}) tuple(%kernels, %kept, %end)
}

%going (s: (s8[3,16,16], bf16[8,64,4], bf16[2,16])) -> pred[] {
  %s = (s8[3,16,16]{2,1,0}, bf16[8,64,4]{2,1,0}, bf16[2,16]{1,0:S(1)}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (k: s8[3,16,16], c: bf16[8,64,4], h: bf16[2,16]) -> bf16[8,64,4] {
  %k = s8[3,16,16]{2,1,0} parameter(0)
  %c = bf16[8,64,4]{2,1,0} parameter(1)
  %h = bf16[2,16]{1,0:S(1)} parameter(2)
  %before = bf16[8,64,4]{2,1,0} copy(%c)
  %s = (s8[3,16,16]{2,1,0}, bf16[8,64,4]{2,1,0}, bf16[2,16]{1,0:S(1)}) tuple(%k, %before, %h)
  %loop = (s8[3,16,16]{2,1,0}, bf16[8,64,4]{2,1,0}, bf16[2,16]{1,0:S(1)}) while(%s), condition=%going, body=%step
  ROOT %done = bf16[8,64,4]{2,1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_a_loop_moves_slices_updates_and_copies():
    kernels, update, whole, index = 3 * 16 * 16, 2 * 8 * 4, 2 * 8 * 64 * 4, 4
    # The update reads nothing of the cache, and the new entries are on the chip.
    expected = kernels + 3 * index + update + index + 2 * whole
    assert traffic.of_loop(PROGRAM) == expected
    without = PROGRAM.replace("  %copied = bf16[8,64,4]{2,0,1} copy(%kept)\n", "")
    assert traffic.of_loop(without) == expected - 2 * whole
    twice = PROGRAM.replace("constant(3)", "constant(6)")
    assert traffic.of_loop(twice) == expected + kernels + 3 * index
    with pytest.raises(UnreadableError, match="has no loop"):
        traffic.of_loop(PROGRAM.replace("while(%s)", "call(%s)"))


@pytest.mark.parametrize("quantize", [(), BOTH])
def test_the_least_that_a_pass_reads(quantize):
    program = program_of(config_of(2), "sample", {"quantize": quantize})
    c, devices = program.task.config.model, machine("cpu:2").devices
    width = np.dtype(jax.numpy.dtype(c.dtype)).itemsize
    kernels = c.hidden_size * (2 * (c.num_heads + c.num_kv_heads) * c.head_dim)
    kernels += 3 * c.hidden_size * c.intermediate_size
    outs = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim + 2 * c.intermediate_size
    norms = width * c.hidden_size * (2 * c.num_layers + 1)
    head = width * c.hidden_size * 32768 / 2
    # Scales of the outputs that are not split over the mesh are on both devices.
    scales = 4 * (outs / 2 + 2 * c.hidden_size) if quantize else 0
    layer = (kernels if quantize else width * kernels) / 2 + scales
    vector = c.head_dim + 4 if quantize else width * c.head_dim
    # 128 tokens of a prompt, of which the last is not read before the first new one.
    written = np.mean(127 + np.arange(8193))
    cache = 2 * written * 2 * c.num_layers * c.num_kv_heads * vector / 2
    found = program.floor_bytes(devices)
    np.testing.assert_allclose(found, c.num_layers * layer + norms + head + cache, rtol=1e-12)


def test_the_cache_is_read_in_four_stages():
    program = program_of(config_of(), "sample")
    live = program.live_slots()
    assert len(live) == 8193 and len(set(live)) == 4 and live == sorted(live)
    assert all(slots >= 127 + n for n, slots in enumerate(live))
    assert np.mean(live) < 1.35 * np.mean(127 + np.arange(8193))


def test_passes_follow_the_decoder():
    def of(**sampling):
        return program_of(config_of(), "sample", sampling)

    assert of().passes() == 8193 and of(decoder="jacobi", window=16).passes() is None
    assert of(decoder="zipar", window=4).passes() == 89 * 4 + 90
    assert of(decoder="adaptive_zipar", window=4).passes() is None
    assert of(decoder="jacobi", window=16).decoder.width == 16
    few, many = (
        p.matmul_flops(machine("cpu:1").devices) for p in (of(), of(decoder="jacobi", window=16))
    )
    assert many == 16 * few


@pytest.mark.parametrize(
    "name, sampling, words",
    [
        ("sample", {"quantize": ["head"]}, "weights and cache can be int8, not 'head'"),
        ("sample", {"decoder": "guess"}, "decoder must be one of .*, not 'guess'"),
        ("sample", {"decoder": "jacobi", "window": 0}, "window=0 of jacobi must be at least 1"),
        ("sample", {"window": 4}, "window=4 is of another decoder"),
        ("train", {"decoder": "jacobi", "window": 4}, "--decoder, --window goes with --program=sa"),
    ],
)
def test_options_that_do_not_fit_are_refused(name, sampling, words):
    with pytest.raises(ConfigError, match=words):
        program_of(config_of(), name, sampling)


def test_int8_takes_less_room_and_a_window_more_of_the_mask():
    two = machine("cpu:2")
    arguments = []
    for quantize in ((), BOTH):
        program = program_of(config_of(2), "sample", {"quantize": quantize, "decoder": "jacobi"})
        lowered = program.lower(two.devices, live=2816)
        assert lowered.out_info[1].token_BW.shape == (1, 64)
        arrays = jax.tree.leaves(lowered.in_avals)
        arguments.append(sum(x.size * x.dtype.itemsize for x in arrays))
        assert any(x.dtype == np.int8 for x in arrays) == bool(quantize)
    assert arguments[1] < arguments[0]
    assert decoding_step.measure(program, two) is None  # without a TPU compiler
