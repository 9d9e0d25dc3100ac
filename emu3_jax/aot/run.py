"""One program for one machine: compile it, print what was found."""

import functools
import json

from ml_collections import ConfigDict

from emu3_jax.aot import advice, report
from emu3_jax.aot.compiler import examine
from emu3_jax.aot.estimate import NoEstimateError, estimate
from emu3_jax.aot.programs import PROGRAMS
from emu3_jax.aot.topology import Machine


def compile_and_report(
    config: ConfigDict,
    name: str,
    target: Machine,
    *,
    search: bool,
    with_estimate: bool,
    plan_only: bool = False,
) -> report.Report:
    """Prints a table, what to change where it does not fit, and last one line of JSON.

    Args:
        config: whose program.
        name: which program, a key of PROGRAMS.
        target: compiled for this.
        search: look for the cheapest remat policy and the largest batch first.
        with_estimate: estimate the time of a step as well, where it fits.
        plan_only: stop at the compiler's plan, which has no time.
    """
    program = PROGRAMS[name].of(config)
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
    found = found.with_estimate(time, target)
    mesh = " x ".join(f"{axis} {size}" for axis, size in program.mesh(target).shape.items())
    print(report.table(found, f"{name} on {target.chips} chips, mesh {mesh}", time))
    if why_not:
        print(why_not)
    if not found.fits:
        print(advice.what_to_change(found, program, target))
    print(json.dumps(found.to_json()))
    return found
