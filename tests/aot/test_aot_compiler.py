"""What the compiler says of a program: its plan, its refusals, its estimate of the time."""

import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
from types import SimpleNamespace

import jax
import pytest
from paths import GOLDEN
from shrunken_twins import twin

from emu3_jax.aot import compiler, estimate, report
from emu3_jax.aot.compile_and_report import program_of
from emu3_jax.aot.hlo import UnreadableError
from emu3_jax.aot.topology import machine

STAGE1 = "configs/emu3_8b_stage1.py"


@pytest.mark.parametrize(
    "words",
    [
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 169.83G of 15.75G hbm. Exceeded hbm capacity by 154.08G.",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (169.83G) exceeds available HBM (15.75G).",
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (169.83G) exceeds available HBM (15.75G). HLO module: jit_f.",
    ],
)
def test_the_compilers_own_refusals_are_read(words):
    assert report.too_large(RuntimeError(words)) == (169.83, 15.75)
    with pytest.raises(RuntimeError, match="something else"):
        report.too_large(RuntimeError("something else"))


class _Unrolled:
    """A program of one to four layers for which a TPU's compiler says `seconds[layers]`."""

    stacked = True

    def __init__(self, seconds):
        self.seconds, self.layers = seconds, None
        config = SimpleNamespace(
            model=SimpleNamespace(num_layers=8), run=SimpleNamespace(accumulation=1)
        )
        self.task = SimpleNamespace(config=config)

    def with_layers(self, layers):
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
        if self.seconds == "no cycles":
            return _analysed({"optimal_seconds": 1.0}, text.replace("estimated_", ""))
        if self.seconds == "no time":
            return _analysed({"flops": 1.0}, text)
        return _analysed({"optimal_seconds": self.seconds[self.layers]}, text)


def _analysed(cost, text):
    return SimpleNamespace(cost_analysis=lambda: cost, as_text=lambda: text)


TPU = SimpleNamespace(is_tpu=True, devices=())


def test_an_estimate_goes_through_two_and_four_layers():
    found = estimate.estimate(_Unrolled({2: 5.0, 4: 7.0}), TPU)
    assert found.seconds == 5 + 1.0 * 6 and sum(found.parts.values()) == 1


@pytest.mark.parametrize(
    "seconds, words",
    [
        (None, "takes 60.7 GiB of 15.8; try a smaller data.batch_size"),
        ({2: -116.6, 4: -204.4}, "for 2 and 4 layers on this machine are -117 and -204 seconds"),
        ({2: 5.0, 4: 4.0}, "are 5 and 4 seconds"),
        ("no cycles", "the program states no estimated_cycles"),
        ("no time", "cost analysis has no 'optimal_seconds'"),
    ],
)
def test_an_estimate_that_makes_no_sense_is_none(seconds, words):
    with pytest.raises(estimate.NoEstimateError, match=words):
        estimate.estimate(_Unrolled(seconds), TPU)


def _compiled_first(receiver, folder):
    """The wait, where the compiler is done before anybody has looked for its plan."""
    return compiler._received(receiver)


def _planned_first(receiver, folder):
    """The wait, where the plan is seen first."""
    compiler._received(receiver)


def _all_but_seconds(found):
    return dataclasses.replace(found, compile_s=0.0)


def test_a_plan_has_the_memory_and_the_collectives_of_the_whole_compile(monkeypatch):
    """On a CPU, whose code needs no memory of its own; the plan is made in another process."""
    program, eight = program_of(twin(STAGE1)), machine("cpu:8", hbm_gib=1.0)
    planned, compiled = (compiler.examine(program, eight, plan) for plan in (True, False))
    assert planned.arguments_gib == compiled.arguments_gib > 0
    assert planned.temporaries_gib == compiled.temporaries_gib > 0
    assert planned.collectives == compiled.collectives != {}
    # Constants, some hundred bytes, stand apart in the one, as temporaries in the other.
    counted = pytest.approx(compiled.memory_analysis_gib, abs=2**-20)
    assert planned.temporaries_gib == counted and planned.memory_analysis_gib is None
    assert planned.code_gib is None and compiled.code_gib is not None
    assert planned.fits and "planned in" in report.table(planned, "")
    for first in (_compiled_first, _planned_first):
        monkeypatch.setattr(compiler, "_until_planned", first)
        again = compiler.examine(program, eight, plan_only=True)
        assert _all_but_seconds(again) == _all_but_seconds(planned)


TOO_LARGE = RuntimeError("Used 20.50G of 15.75G hbm")


def _saying(monkeypatch, said, plan):
    """A compiler that writes a plan, or none, and says something; the plan of two matrices."""

    @contextlib.contextmanager
    def compiling(program, target, folder):
        receiver, sender = multiprocessing.Pipe(duplex=False)
        for kind, ending in plan.items():
            text = (GOLDEN / "compilers" / f"libtpu-0.0.50-{kind}.txt").read_text()
            (pathlib.Path(folder) / f"module.after_optimizations{ending}.txt").write_text(text)
        sender.send(said)
        yield receiver

    monkeypatch.setattr(compiler, "_compiling", compiling)
    program = SimpleNamespace(model_flops=lambda: 4e12)
    return program, SimpleNamespace(chips=2, hbm_gib=15.75)


PLAN = {"program": "", "arrays": "-buffer-assignment"}


@pytest.mark.parametrize("first", [None, _compiled_first, lambda receiver, folder: None])
@pytest.mark.parametrize("said", [TOO_LARGE, RuntimeError("no code"), compiler._Code(7, 8)])
def test_a_plan_does_not_depend_on_what_the_compiler_says_after_it(monkeypatch, said, first):
    if first is not None:
        monkeypatch.setattr(compiler, "_until_planned", first)
    found = compiler.examine(*_saying(monkeypatch, said, PLAN), plan_only=True)
    assert found.arguments_gib == (393216 + 16384) / 2**30
    assert found.fits and found.limit_gib == 15.75 and found.collectives["all-gather"]["count"] == 3
    assert found.code_gib is None and found.memory_analysis_gib is None


@pytest.mark.parametrize("plan_only", [True, False])
@pytest.mark.parametrize("plan", [{}, {"program": ""}], ids=["no plan", "half a plan"])
def test_a_refusal_before_the_plan_is_reported(monkeypatch, plan_only, plan):
    found = compiler.examine(*_saying(monkeypatch, TOO_LARGE, plan), plan_only=plan_only)
    assert (found.hbm_gib, found.limit_gib, found.fits) == (20.5, 15.75, False)
    assert found.arguments_gib is None and found.model_tflops_per_chip == 2


def test_a_refusal_after_the_plan_has_its_arrays(monkeypatch):
    found = compiler.examine(*_saying(monkeypatch, TOO_LARGE, PLAN))
    assert (found.hbm_gib, found.limit_gib, found.fits) == (20.5, 15.75, False)
    assert found.arguments_gib == (393216 + 16384) / 2**30 and found.code_gib is None


@pytest.mark.parametrize("plan_only", [True, False])
def test_a_refusal_for_another_reason_is_raised(monkeypatch, plan_only):
    asked = _saying(monkeypatch, RuntimeError("no such instruction"), {})
    with pytest.raises(RuntimeError, match="no such instruction"):
        compiler.examine(*asked, plan_only=plan_only)


@pytest.mark.parametrize("plan", [{}, {"program": ""}], ids=["no plan", "half a plan"])
def test_a_compiler_that_writes_no_plan_cannot_be_read(monkeypatch, plan):
    with pytest.raises(UnreadableError, match="0 files"):
        compiler.examine(*_saying(monkeypatch, compiler._Code(7, 8), plan), plan_only=True)


def test_a_plan_is_whole_once_a_later_file_is_there(tmp_path):
    def write(name, second):
        (tmp_path / name).write_text("text")
        os.utime(tmp_path / name, (second, second))
        return compiler._is_whole(tmp_path)

    assert not compiler._is_whole(tmp_path)
    assert not write("m.before_optimizations.txt", 1)
    assert not write("m.after_optimizations.txt", 3)
    assert not write("m.debug_options", 4)
    assert not write("m.after_optimizations-buffer-assignment.txt", 5)
    assert not write("m.after_optimizations-live-range.txt", 5)  # within one tick of the clock
    assert write("m.after_codegen.txt", 6)


def test_a_plan_of_what_cannot_be_cut_says_so():
    program = program_of(twin(STAGE1)).changed(data={"batch_size": 3})
    with pytest.raises(ValueError, match="must be a multiple of"):
        compiler.examine(program, machine("cpu:8"), plan_only=True)
