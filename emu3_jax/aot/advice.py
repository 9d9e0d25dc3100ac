"""What to change if a program does not fit, and the search for a config that fits."""

from collections.abc import Callable

from emu3_jax import sharding
from emu3_jax.aot.report import Report
from emu3_jax.aot.topology import Machine
from emu3_jax.models.language.transformer import REMAT
from emu3_jax.train.program import TrainProgram

Compile = Callable[[TrainProgram, Machine], Report]

CHEAPEST_FIRST = ("none", "dots", "attention", "full")
"""Names of REMAT by how much the backward pass recomputes, least first."""
assert set(CHEAPEST_FIRST) == set(REMAT)


def what_to_change(report: Report, program: TrainProgram, machine: Machine) -> str:
    """Returns one sentence for a program that does not fit."""
    need = f"{report.hbm_gib:.1f} GiB per device are needed and there are {report.limit_gib:.1f}: "
    if report.arguments_gib is not None and report.arguments_gib > report.limit_gib:
        return need + (
            "the state alone is too large, so take more chips for run.mesh.fsdp, or "
            "run.optimizer.second_moment=bfloat16"
        )
    if not program.stacked:
        return need + "take smaller batches or more chips"
    if program.task.config.model.remat != "full":
        return need + "set model.remat=full (or let --search find a cheaper policy that fits)"
    rows = program.task.config.data.batch_size // program.task.config.run.accumulation
    shares = _shares(program, machine)
    if rows > shares:
        return need + (
            f"a device has {rows // shares} rows at a time, so lower data.batch_size, or raise "
            "run.accumulation"
        )
    return need + (
        "shard the rows over run.mesh.context, or the layers over run.mesh.tensor, or take more "
        "chips for run.mesh.fsdp"
    )


def search(
    program: TrainProgram, machine: Machine, compile_for: Compile, say=print
) -> tuple[Report, TrainProgram]:
    """Finds the cheapest policy with which the config's batch fits, then the largest batch with it.

    Batch sizes are tried in steps of one row per shard of the mesh.

    Args:
      program: the training program of a transformer.
      machine: the machine to compile for.
      compile_for: compiles one program and returns its report.
      say: called with a line about every attempt.

    Returns:
      (report, program) of the largest batch that fits. If none fits, those of the config's batch
      with model.remat=full.

    Raises:
      ValueError: the config does not train a transformer.
    """
    if not program.stacked:
        raise ValueError("--search is for transformers (task pretrain)")

    def attempt(rows: int, remat: str) -> tuple[Report, TrainProgram]:
        tried = program.changed(model={"remat": remat}, data={"batch_size": rows})
        report = compile_for(tried, machine)
        answer = "fits" if report.fits else "does not fit"
        say(f"batch_size {rows}, remat {remat}: {report.hbm_gib:.1f} GiB, {answer}")
        return report, tried

    rows = program.task.config.data.batch_size
    for remat in CHEAPEST_FIRST:
        best = attempt(rows, remat)
        if best[0].fits:
            break
    else:
        return best
    step = _shares(program, machine) * program.task.config.run.accumulation
    fits, fails = rows // step, None
    while fails is None or fails - fits > 1:
        middle = 2 * fits if fails is None else (fits + fails) // 2
        found = attempt(middle * step, remat)
        if found[0].fits:
            fits, best = middle, found
        else:
            fails = middle
    return best


def _shares(program: TrainProgram, machine: Machine) -> int:
    """Returns the number of shards of a batch's rows."""
    mesh = program.mesh(machine.devices)
    shares = 1
    for axis in sharding.mesh_axes("batch"):
        shares *= mesh.shape[axis]
    return shares
