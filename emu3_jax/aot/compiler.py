"""The compiler at work in a process of its own: what it plans, and what it says at the end.

XLA first fuses, schedules and places every array: its plan, which it writes into files when asked
to (--xla_dump_to). Then it writes code for each fusion, which on a few cores takes most of the time
(a quarter of an hour and more for a vision tokenizer's convolutions) and changes neither the arrays
nor what crosses the mesh. A compile cannot be broken off, so a process is ended where the plan is
enough. A small program may be compiled before anybody has looked for its plan, and a TPU's compiler
refuses a large one when its plan is written; a report of the plan is therefore made from its files
alone, whichever of the two was noticed first.

Memory is that of the plan, by which the compiler itself decides whether a program fits: what it
says of a program that is too large is the same sum to the last digit.
`Compiled.memory_analysis()` counts more: a TPU program of 14.0 GiB that was compiled for 15.75 has
19.2 by it. Other projects quote it, so it is reported too.
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
# A color is a memory of its own; the page came with jaxlib 0.12.
_ALLOCATION = re.compile(
    r"allocation \d+: size (?P<size>\d+)(?P<color>, color \d+)?(, page \d+)?, "
    r"(?P<kind>(parameter|output|constant|thread-local|maybe-live-out|preallocated-temp)\b.*):"
)


class _Plan(NamedTuple):
    """What is known from the plan: bytes, and kind → {"count", "gib"}."""

    arguments: int
    temporaries: int
    outputs: int
    collectives: dict[str, dict]


class _Code(NamedTuple):
    """What is known once the code is written, in bytes."""

    size: int
    temporaries: int  # by memory_analysis()


def examine(
    program: TrainProgram,
    target: Machine,
    plan_only: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> report.Report:
    """What the program needs on the machine, without an estimate of its time.

    Args:
      program: what to compile.
      target: what for.
      plan_only: stop at the plan; code_gib and memory_analysis_gib are None.
      say: told when the plan is there and the code is still to be written.

    Raises:
      ValueError: mesh, model and batch do not fit together.
      UnreadableError: the compiler writes its plan in a form that is not known.
      RuntimeError: the compiler refuses the program for another reason than its size.
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
            said = None  # what the compiler said after its plan
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
    """(arguments, temporaries, outputs) of a device's main memory, from XLA's list of allocations.

    Outputs are those that do not take the place of an argument. Not counted: other memories
    ("color N": what a TPU has on the chip) and the stacks of single instructions ("thread-local").

    Raises:
      UnreadableError: an allocation is written in another form, or none is an argument.
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
    """Where a process that compiles will say what came of it; it is ended with the block."""
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
    """None once the plan lies in `folder`, else what came of it when it ends before."""
    while not _is_whole(folder):
        if receiver.poll(_POLL_S):
            return None if _is_whole(folder) else _received(receiver)
    return None


def _is_whole(folder: Path) -> bool:
    """Whether the plan is written to its end: XLA writes one file after another, so a file is whole
    once there is a later one."""
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
        raise RuntimeError("the compiler's process ended without a word") from error


def _compile(program: TrainProgram, name: str, slices: int, folder: str, sender: Connection):
    """In the process of its own."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # what comes from there has no plan
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
