"""The compiler at work in a process of its own: what it plans, and what it says at the end.

XLA first fuses, schedules and places every array: its plan, which it writes into files when asked
to (--xla_dump_to). Then it writes code for each fusion, which on a few cores takes most of the time
(a quarter of an hour and more for a vision tokenizer's convolutions) and changes neither the arrays
nor what crosses the mesh. A compile cannot be broken off, so a process is ended where the plan is
enough.

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
from emu3_jax.aot.topology import Machine, machine
from emu3_jax.train.program import TrainProgram

_POLL_S = 0.5
_ARRAYS = "*after_optimizations-buffer-assignment.txt"
_PROGRAM = "*after_optimizations.txt"
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+), (.*)$", re.MULTILINE)


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
      plan_only: stop at the plan.
      say: told when the plan is there and the code is still to be written.

    Raises:
      ValueError: mesh, model and batch do not fit together.
      RuntimeError: the compiler refuses the program for another reason than its size.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, _compiling(program, target, name) as receiver:
        folder = Path(name)
        said = _until_planned(receiver, folder)
        if said is None and not plan_only:
            gib = sum(bytes_of_arrays(_read(folder, _ARRAYS))) / report.GIB
            say(f"planned in {time.perf_counter() - began:.0f} s: {gib:.2f} GiB; code follows")
            said = _received(receiver)
        seconds = time.perf_counter() - began
        tflops = program.model_flops() / target.chips / 1e12
        if isinstance(said, ValueError):
            raise said
        if isinstance(said, RuntimeError):
            need, limit = report.too_large(said)
            return report.Report(None, None, need, limit, False, seconds, {}, tflops)
        arguments, temporaries, outputs = bytes_of_arrays(_read(folder, _ARRAYS))
        collectives = report.summed(hlo.collectives(_read(folder, _PROGRAM)))
    total = (arguments + temporaries + outputs + (said.size if said else 0)) / report.GIB
    return report.Report(
        arguments_gib=arguments / report.GIB,
        temporaries_gib=temporaries / report.GIB,
        hbm_gib=total,
        limit_gib=target.hbm_gib,
        fits=target.hbm_gib is None or total <= target.hbm_gib,
        compile_s=seconds,
        collectives=collectives,
        model_tflops_per_chip=tflops,
        code_gib=said.size / report.GIB if said else None,
        memory_analysis_gib=said.temporaries / report.GIB if said else None,
    )


def bytes_of_arrays(text: str) -> tuple[int, int, int]:
    """(arguments, temporaries, outputs) of a device's main memory, from XLA's list of allocations.

    Outputs are those that do not take the place of an argument. Not counted: other memories
    ("color N": what a TPU has on the chip) and the stacks of single instructions ("thread-local").
    """
    arguments = temporaries = outputs = 0
    for size, kind in _ALLOCATION.findall(text):
        if "thread-local" in kind or re.search(r"\bcolor \d", kind):
            continue
        if kind.startswith("parameter"):
            arguments += int(size)
        elif "maybe-live-out" in kind or kind.startswith("output"):
            outputs += int(size)
        else:
            temporaries += int(size)
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
    """None once the plan lies in `folder`, or what came of it if it ends before."""
    sizes = None
    while not receiver.poll(_POLL_S):
        files = [*folder.glob(_ARRAYS), *folder.glob(_PROGRAM)]
        before, sizes = sizes, [file.stat().st_size for file in files]
        if len(files) == 2 and all(sizes) and sizes == before:
            return None
    return _received(receiver)


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


def _read(folder: Path, pattern: str) -> str:
    (file,) = folder.glob(pattern)
    return file.read_text()
