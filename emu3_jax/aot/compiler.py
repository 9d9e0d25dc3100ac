"""Runs the compiler in a process of its own and reads its plan and its final result.

XLA first fuses, schedules and places every array. This is its plan, which --xla_dump_to writes into
files. Then it generates code for each fusion. On a few cores that takes most of the time (a quarter
of an hour and more for a vision tokenizer's convolutions), and it changes neither the arrays nor
what crosses the mesh. A compile cannot be cancelled, so if the plan is enough, the process is
killed. A small program may finish before its plan is noticed, and the TPU compiler refuses a large
one after it has written the plan. A report of the plan is therefore made from the files alone, in
whatever order these events are noticed.

Memory is that of the plan, by which the compiler decides whether a program fits: if it refuses a
program, its message has the same sum to the last digit. `Compiled.memory_analysis()` counts more: a
TPU program of 14.0 GiB that was compiled for 15.75 has 19.2 by it. Other projects quote that
figure, so it is reported too.
"""

import contextlib
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import jax

from emu3_jax.aot import hlo, report
from emu3_jax.aot.hlo import UnreadableError
from emu3_jax.aot.report import GIB
from emu3_jax.aot.topology import Machine, machine
from emu3_jax.train.program import TrainProgram

_POLL_S = 0.5
_ARRAYS = "*after_optimizations-buffer-assignment.txt"
_PROGRAM = "*after_optimizations.txt"
# A color is a separate memory; "page" is new in jaxlib 0.12.
_ALLOCATION = re.compile(
    r"allocation \d+: size (?P<size>\d+)(?P<color>, color \d+)?(, page \d+)?, "
    r"(?P<kind>(parameter|output|constant|thread-local|maybe-live-out|preallocated-temp)\b.*):"
)


class _Plan(NamedTuple):
    """Figures from the plan: bytes, and kind of collective → {"count", "gib"}."""

    arguments: int
    temporaries: int
    outputs: int
    collectives: dict[str, dict]


class _Code(NamedTuple):
    """Figures from the finished compile, in bytes."""

    size: int
    temporaries: int  # by memory_analysis()


def examine(
    program: TrainProgram,
    target: Machine,
    plan_only: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> report.Report:
    """Returns what the program needs on the machine, without an estimate of its time.

    Args:
      program: the program to compile.
      target: the machine to compile for.
      plan_only: stop at the plan; code_gib and memory_analysis_gib are None.
      say: called with a line when the plan is complete and code generation begins.

    Raises:
      ValueError: mesh, model and batch do not fit together.
      UnreadableError: the compiler writes its plan in an unknown form.
      RuntimeError: the compiler refuses the program for a reason other than its size.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, _compiling(program, target, name) as receiver:
        folder = Path(name)
        said = _until_planned(receiver, folder)
        if said is None and not plan_only:
            gib = sum(bytes_of_arrays(_read(folder, _ARRAYS))) / GIB
            say(f"planned in {time.perf_counter() - began:.0f} s: {gib:.2f} GiB; code follows")
            said = _received(receiver)
        seconds = time.perf_counter() - began
        planned = len(_plan_files(folder)) == 2
        if planned and plan_only:
            said = None  # ignore what came after the plan
        if isinstance(said, ValueError):
            raise said
        refusal = report.too_large(said) if isinstance(said, RuntimeError) else None
        plan = _read_plan(folder) if planned or refusal is None else None
    tflops = program.model_flops() / target.chips / 1e12
    if plan is None:
        return report.Report(None, None, *refusal, False, seconds, {}, tflops)
    code = said if isinstance(said, _Code) else None
    total = (plan.arguments + plan.temporaries + plan.outputs + (code.size if code else 0)) / GIB
    needed, limit = refusal or (total, target.hbm_gib)
    return report.Report(
        arguments_gib=plan.arguments / GIB,
        temporaries_gib=plan.temporaries / GIB,
        hbm_gib=needed,
        limit_gib=limit,
        fits=refusal is None and (limit is None or needed <= limit),
        compile_s=seconds,
        collectives=plan.collectives,
        model_tflops_per_chip=tflops,
        code_gib=code.size / GIB if code else None,
        memory_analysis_gib=code.temporaries / GIB if code else None,
    )


def bytes_of_arrays(text: str) -> tuple[int, int, int]:
    """Returns bytes (arguments, temporaries, outputs) in a device's main memory.

    Outputs are those that do not reuse the memory of an argument. Other memories ("color N": on a
    TPU, those on the chip) and the stacks of single instructions ("thread-local") do not count.

    Args:
      text: XLA's list of allocations.

    Raises:
      UnreadableError: an allocation has an unknown form, or none is an argument.
    """
    arguments = temporaries = outputs = parameters = 0
    for line in text.splitlines():
        if not line.startswith("allocation "):
            continue
        match = _ALLOCATION.fullmatch(line)
        if match is None:
            raise UnreadableError(f"of its arrays, the line {line[:100]!r}")
        size, kind = int(match["size"]), match["kind"]
        if "thread-local" in kind or match["color"]:
            continue
        if kind.startswith("parameter"):
            arguments += size
            parameters += 1
        elif "maybe-live-out" in kind or kind.startswith("output"):
            outputs += size
        else:
            temporaries += size
    if not parameters:
        raise UnreadableError("its list of arrays has no argument of the program")
    return arguments, temporaries, outputs


@contextlib.contextmanager
def _compiling(program: TrainProgram, target: Machine, folder: str) -> Iterator[Connection]:
    """Yields the pipe on which a compiling process sends its result; kills it after the block."""
    processes = multiprocessing.get_context("spawn")
    receiver, sender = processes.Pipe(duplex=False)
    arguments = (program, target.name, target.slices, folder, sender)
    child = processes.Process(target=_compile, args=arguments, daemon=True)
    child.start()
    sender.close()
    try:
        yield receiver
    finally:
        child.kill()
        child.join()


def _until_planned(receiver: Connection, folder: Path) -> ValueError | RuntimeError | _Code | None:
    """Returns None once the plan is in `folder`, or the result if the process ends before."""
    while not _is_whole(folder):
        if receiver.poll(_POLL_S):
            return None if _is_whole(folder) else _received(receiver)
    return None


def _is_whole(folder: Path) -> bool:
    """Returns whether the plan is complete: XLA writes one file after another, so a file is
    complete once a later one exists."""
    plan = _plan_files(folder)
    others = [file for file in folder.iterdir() if file.is_file() and file not in plan]
    written = max((file.stat().st_mtime_ns for file in plan), default=0)
    return len(plan) == 2 and any(file.stat().st_mtime_ns > written for file in others)


def _plan_files(folder: Path) -> list[Path]:
    return [*folder.glob(_ARRAYS), *folder.glob(_PROGRAM)]


def _received(receiver: Connection) -> ValueError | RuntimeError | _Code:
    try:
        return receiver.recv()
    except EOFError as error:
        raise RuntimeError("the compiler's process ended without a result") from error


def _compile(program: TrainProgram, name: str, slices: int, folder: str, sender: Connection):
    """Compiles and sends the result; runs in the child process."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # a cached program has no plan
    try:
        lowered = program.lower(machine(name, slices).devices)
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder})
    except jax.errors.JaxRuntimeError as error:
        sender.send(RuntimeError(str(error)))
    except ValueError as error:
        sender.send(ValueError(str(error)))
    else:
        memory = compiled.memory_analysis()
        sender.send(_Code(memory.generated_code_size_in_bytes, memory.temp_size_in_bytes))


def _read_plan(folder: Path) -> _Plan:
    collectives = report.summed(hlo.collectives(_read(folder, _PROGRAM)))
    return _Plan(*bytes_of_arrays(_read(folder, _ARRAYS)), collectives)


def _read(folder: Path, pattern: str) -> str:
    files = list(folder.glob(pattern))
    if len(files) != 1:
        raise UnreadableError(f"{len(files)} files {pattern} in place of one")
    return files[0].read_text()
