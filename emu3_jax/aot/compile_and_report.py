"""Compiles one program for one machine and prints the report."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from emu3_jax.aot import advice, decoding_step, report
from emu3_jax.aot.compiler import examine
from emu3_jax.aot.estimate import NoEstimateError, estimate
from emu3_jax.aot.topology import Machine
from emu3_jax.config import ConfigError
from emu3_jax.train.program import Program, TrainProgram
from emu3_jax.train.tasks import registry
from emu3_jax.train.tasks.language.transformer_programs import SampleProgram

TRAIN = "train"


def compile_and_report(
    config: ConfigDict,
    name: str,
    target: Machine,
    *,
    search: bool,
    with_estimate: bool,
    plan_only: bool = False,
    sampling: Mapping[str, Any] | None = None,
) -> report.Report:
    """Prints a table, what to change if it does not fit, and then one line of JSON.

    Args:
      config: the config of the task.
      name: name of the program, see `program_of`.
      target: the machine to compile for.
      search: first search for the cheapest remat policy and the largest batch.
      with_estimate: also estimate the time of a step, if it fits.
      plan_only: stop at the compiler's plan, which has no time.
      sampling: see `program_of`.
    """
    program = program_of(config, name, sampling)
    say = functools.partial(print, flush=True)  # a compile takes long
    by_compiler = functools.partial(examine, plan_only=plan_only, say=say)
    if search:
        found, program = advice.search(program, target, by_compiler, say)
    else:
        found = by_compiler(program, target)
    wanted = with_estimate and found.fits and not plan_only
    time, why_not = None, None
    try:
        time = estimate(program, target) if wanted else None
    except NoEstimateError as error:
        why_not = f"no estimate: {error}"
    found, lines = found.with_estimate(time, target), []
    if wanted and isinstance(program, SampleProgram):
        step = decoding_step.measure(program, target)
        if step is not None:
            found = dataclasses.replace(found, decoding=step._asdict() | {"ratio": step.ratio})
            lines = step.rows()
    mesh = " x ".join(f"{axis} {size}" for axis, size in program.mesh(target.devices).shape.items())
    print(report.table(found, f"{name} on {target.chips} chips, mesh {mesh}", time, lines))
    if why_not:
        print(why_not)
    if not found.fits:
        print(advice.what_to_change(found, program, target))
    print(json.dumps(found.to_json()))
    return found


def program_of(
    config: ConfigDict, name: str = TRAIN, sampling: Mapping[str, Any] | None = None
) -> Program:
    """Returns the program `name` of a config's task: "train", or one of `Task.programs`.

    Data is read only for the size of the vocabulary, if the config does not set it. `sampling` are
    arguments of a `SampleProgram`; ConfigError if it is another program.
    """
    task = registry.make(registry.resolve(config.to_dict()), read_data=False)
    programs = {TRAIN: TrainProgram(task), **task.programs()}
    if name not in programs:
        raise ConfigError(
            f"--program={name} is not a program of the task {task.config.task}, which has "
            f"{', '.join(programs)}"
        )
    program = programs[name]
    if not sampling:
        return program
    if not isinstance(program, SampleProgram):
        flags = ", ".join(f"--{flag}" for flag in sampling)
        raise ConfigError(f"{flags} goes with --program=sample, not with --program={name}")
    return SampleProgram(task, **sampling)
