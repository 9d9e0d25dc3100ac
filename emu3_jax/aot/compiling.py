"""One program for one machine: compile it, print what was found."""

import json

from ml_collections import ConfigDict

from emu3_jax.aot import advice, report
from emu3_jax.aot.estimate import estimate
from emu3_jax.aot.programs import PROGRAMS, TrainProgram
from emu3_jax.aot.topology import Machine


def compile_for(program: TrainProgram, target: Machine) -> report.Report:
    """One program on one machine, without an estimate of its time."""
    lowered = program.lower(target)
    return report.compile_report(lowered, target, program.model_flops())[0]


def compile_and_report(
    config: ConfigDict, name: str, target: Machine, *, search: bool, with_estimate: bool
) -> report.Report:
    """Prints a table, what to change where it does not fit, and last one line of JSON.

    Args:
        config: whose program.
        name: which program, a key of PROGRAMS.
        target: compiled for this.
        search: look for the cheapest remat policy and the largest batch first.
        with_estimate: estimate the time of a step as well, where it fits.
    """
    program = PROGRAMS[name].of(config)
    if search:
        found, program = advice.search(program, target, compile_for)
    else:
        found = compile_for(program, target)
    time = estimate(program, target) if with_estimate and found.fits else None
    found = found.with_estimate(time, target)
    mesh = " x ".join(f"{axis} {size}" for axis, size in program.mesh(target).shape.items())
    print(report.table(found, f"{name} on {target.chips} chips, mesh {mesh}", time))
    if not found.fits:
        print(advice.what_to_change(found, program, target))
    print(json.dumps(found.to_json()))
    return found
