"""What the compiler says of a program: its plan, its refusals, its estimate of the time."""

from types import SimpleNamespace

import jax
import pytest
from shrunken_twins import twin

from emu3_jax.aot import compiler, estimate, report
from emu3_jax.aot.run import program_of
from emu3_jax.aot.topology import machine

STAGE1 = "configs/emu3_8b_stage1.py"


@pytest.mark.parametrize(
    "words",
    [
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 169.83G of 15.75G hbm. Exceeded hbm capacity by 154.08G.",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (169.83G) exceeds available HBM (15.75G).",
    ],
)
def test_the_compilers_own_refusals_are_read(words):
    assert report.too_large(RuntimeError(words)) == (169.83, 15.75)
    with pytest.raises(RuntimeError, match="something else"):
        report.too_large(RuntimeError("something else"))


class _Unrolled:
    """A program of one to four layers for which a TPU's compiler says `seconds[layers]`."""

    is_transformer = True

    def __init__(self, seconds):
        self.seconds, self.layers = seconds, None
        self.task = SimpleNamespace(config=SimpleNamespace(num_layers=8))
        self.run = SimpleNamespace(accumulation=1)

    def unrolled(self, layers):
        self.layers = layers
        return self

    def lower(self, target):
        return self

    def compile(self):
        if self.seconds is None:
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
                "temporaries (60.73G) exceeds available HBM (15.75G)."
            )
        text = 'ENTRY %main () -> f32[] {\n  %a = f32[] add(), "estimated_cycles":"10"\n}'
        found = {"optimal_seconds": self.seconds[self.layers]}
        return SimpleNamespace(cost_analysis=lambda: found, as_text=lambda: text)


TPU = SimpleNamespace(is_tpu=True)


def test_an_estimate_goes_through_two_and_four_layers():
    found = estimate.estimate(_Unrolled({2: 5.0, 4: 7.0}), TPU)
    assert found.seconds == 5 + 1.0 * 6 and sum(found.parts.values()) == 1


@pytest.mark.parametrize(
    "seconds, words",
    [
        (None, "takes 60.7 GiB of 15.8; try a smaller data.batch_size"),
        ({2: -116.6, 4: -204.4}, "for 2 and 4 layers on this machine are -117 and -204 seconds"),
        ({2: 5.0, 4: 4.0}, "are 5 and 4 seconds"),
    ],
)
def test_an_estimate_that_makes_no_sense_is_none(seconds, words):
    with pytest.raises(estimate.NoEstimateError, match=words):
        estimate.estimate(_Unrolled(seconds), TPU)


def test_a_plan_has_the_memory_and_the_collectives_of_the_whole_compile():
    """On a CPU, whose code needs no memory of its own; the plan is made in another process."""
    program, eight = program_of(twin(STAGE1)), machine("cpu:8", hbm_gib=1.0)
    planned, compiled = (compiler.examine(program, eight, plan) for plan in (True, False))
    assert planned.arguments_gib == compiled.arguments_gib > 0
    assert planned.temporaries_gib == compiled.temporaries_gib > 0
    assert planned.collectives == compiled.collectives != {}
    # Constants stand apart in the one, as temporaries in the other.
    counted = pytest.approx(compiled.memory_analysis_gib, rel=1e-3)
    assert planned.temporaries_gib == counted and planned.memory_analysis_gib is None
    assert planned.fits and "planned in" in report.table(planned, "")


def test_a_plan_of_what_cannot_be_cut_says_so():
    program = program_of(twin(STAGE1)).changed(data={"batch_size": 3})
    with pytest.raises(ValueError, match="must be a multiple of"):
        compiler.examine(program, machine("cpu:8"), plan_only=True)


def test_of_a_plan_only_arrays_in_main_memory_count():
    """Lines as the TPU's compiler writes them."""
    text = """BufferAssignment:
allocation 0: size 32, thread-local:
 value: <20 tuple.157{} @0> (size=32,offset=0): (pred[]{:T(512)}, s32[]{:T(128)})
allocation 1: size 1000, parameter 9, shape |f32[32,64]| at ShapeIndex {}, maybe-live-out:
allocation 2: size 200, parameter 44, shape |s32[1,5120]| at ShapeIndex {}:
allocation 3: size 7, constant:
allocation 4: size 40, maybe-live-out:
allocation 5: size 2, output shape is |(s32[], f32[184832,64])|, maybe-live-out:
allocation 6: size 77777, color 1, preallocated-temp:
allocation 7: size 88888, color 6, thread-local:
allocation 8: size 500, preallocated-temp:
"""
    assert compiler.bytes_of_arrays(text) == (1200, 507, 42)
