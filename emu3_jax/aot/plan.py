"""What a program needs by the compiler's plan, before any machine code is written.

XLA first fuses, schedules and places every array, and then writes code for each fusion. On a few
cores the second takes most of the time, for a vision tokenizer's convolutions hours, and changes
neither the arrays nor what crosses the mesh. The plan is read from the files in which XLA tells it
(--xla_dump_to); a compile cannot be broken off, so it runs in a process of its own that is ended.

What the plan does not have: the code's own size, and the scratch memory that a TPU's code for
reductions over the mesh asks for (docs/aot.md has both, measured).
"""

import multiprocessing
import os
import re
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import jax

from emu3_jax.aot import hlo, report
from emu3_jax.aot.programs import TrainProgram
from emu3_jax.aot.topology import Machine, machine

_POLL_S = 0.5
_ARRAYS = "*after_optimizations-buffer-assignment.txt"
_PROGRAM = "*after_optimizations.txt"
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+), (.*)$", re.MULTILINE)


def plan_for(program: TrainProgram, target: Machine) -> report.Report:
    """As `compiling.compile_for`, from the plan alone: `hbm_gib` is the least that is needed.

    Raises:
      ValueError: mesh, model and batch do not fit together, or the compiler refuses the program.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        failure = _compile_until_planned(program, target, Path(folder))
        seconds = time.perf_counter() - began
        tflops = program.model_flops() / target.chips / 1e12
        if isinstance(failure, ValueError):
            raise failure
        if failure is not None:
            return report.does_not_fit(failure, seconds, tflops)
        arguments, temporaries, outputs = bytes_of_arrays(_read(folder, _ARRAYS))
        collectives = report.summed(hlo.collectives(_read(folder, _PROGRAM)))
    total = (arguments + temporaries + outputs) / report.GIB
    return report.Report(
        arguments_gib=arguments / report.GIB,
        temporaries_gib=temporaries / report.GIB,
        hbm_gib=total,
        limit_gib=target.hbm_gib,
        fits=target.hbm_gib is None or total <= target.hbm_gib,
        compile_s=seconds,
        collectives=collectives,
        model_tflops_per_chip=tflops,
        plan_only=True,
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


def _compile_until_planned(
    program: TrainProgram, target: Machine, folder: Path
) -> ValueError | RuntimeError | None:
    """Returns None once the plan lies in `folder`, or else what the compiler said."""
    processes = multiprocessing.get_context("spawn")
    receiver, sender = processes.Pipe(duplex=False)
    arguments = (program, target.name, target.slices, str(folder), sender)
    child = processes.Process(target=_compile, args=arguments, daemon=True)
    child.start()
    sender.close()
    try:
        sizes = None
        while True:
            try:
                if receiver.poll(_POLL_S):
                    return receiver.recv()
            except EOFError as error:
                raise RuntimeError("the compiler's process ended without a word") from error
            files = [*folder.glob(_ARRAYS), *folder.glob(_PROGRAM)]
            before, sizes = sizes, [file.stat().st_size for file in files]
            if len(files) == 2 and all(sizes) and sizes == before:
                return None
    finally:
        child.kill()
        child.join()


def _compile(
    program: TrainProgram, name: str, slices: int, folder: str, sender: Connection
) -> None:
    """In the process of its own: sends None at the end, or what went wrong."""
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no TPU is used, only its compiler
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        lowered = program.lower(machine(name, slices))
        lowered.compile(compiler_options={"xla_dump_to": folder})
    except jax.errors.JaxRuntimeError as error:
        sender.send(RuntimeError(str(error)))
    except ValueError as error:
        sender.send(ValueError(str(error)))
    else:
        sender.send(None)


def _read(folder: str, pattern: str) -> str:
    (file,) = Path(folder).glob(pattern)
    return file.read_text()
