"""The time of a step by the TPU compiler's own estimate, and its parts.

The compiler adds up the expected time of each instruction but counts the body of a loop once. So a
transformer is compiled with 2 and with 4 layers, without loops, and the time is extrapolated
linearly to the number of layers. Time on the network is not included: communication that the
compiler cannot overlap with computation adds to the estimate.
"""

from collections import defaultdict

import jax

from emu3_jax.aot import hlo
from emu3_jax.aot.hlo import UnreadableError
from emu3_jax.aot.report import Estimate, too_large
from emu3_jax.aot.topology import Machine
from emu3_jax.train.program import TrainProgram

FEW, MORE = 2, 4

# Part of a step → substrings of the names of its JAX operations; the first match counts.
PARTS = {
    "attention kernels": ("_whole_rows", "splash"),
    "attention projections": ("/attention/",),
    "MLP": ("/gate/", "/up/", "/down/"),
    "norms": ("norm/",),
    "embedding": ("/embed/", "_embed"),
    "loss": ("jvp()/shard_map",),
    "other": ("",),
}


class NoEstimateError(ValueError):
    """The compiler gives no time for this program; the message says why."""


def estimate(program: TrainProgram, machine: Machine) -> Estimate | None:
    """Returns the estimate; None without a TPU compiler or without a stack of layers.

    Raises:
      NoEstimateError: the program without loops does not fit, or the compiler gives no time, or
        times that do not grow with the number of layers.
    """
    if not machine.is_tpu or not program.stacked:
        return None
    layers, times = program.task.config.model.num_layers, program.task.config.run.accumulation

    def at_all_layers(few, more):
        return times * (few + (more - few) / (MORE - FEW) * (layers - FEW))

    try:
        compiled = {n: program.with_layers(n).lower(machine.devices).compile() for n in (FEW, MORE)}
    except jax.errors.JaxRuntimeError as error:
        need, limit = too_large(error)
        raise NoEstimateError(
            "it needs the layers and the loss without loops, which takes "
            f"{need:.1f} GiB of {limit:.1f}; try a smaller data.batch_size"
        ) from error
    try:
        seconds = {n: c.cost_analysis()["optimal_seconds"] for n, c in compiled.items()}
        cycles = {n: cycles_by_part(c) for n, c in compiled.items()}
    except KeyError as error:
        raise NoEstimateError(f"the compiler's cost analysis has no {error}") from error
    except UnreadableError as error:
        raise NoEstimateError(str(error)) from error
    if not 0 < seconds[FEW] < seconds[MORE]:
        raise NoEstimateError(
            f"the compiler's own for {FEW} and {MORE} layers on this machine are "
            f"{seconds[FEW]:.3g} and {seconds[MORE]:.3g} seconds"
        )
    parts = {part: at_all_layers(cycles[FEW][part], cycles[MORE][part]) for part in PARTS}
    total = sum(parts.values())
    return Estimate(
        at_all_layers(seconds[FEW], seconds[MORE]),
        {part: value / total for part, value in parts.items()},
        seconds,
    )


def cycles_by_part(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Returns part of a step → clock cycles that the TPU compiler estimates for it."""
    sums: dict[str, int] = defaultdict(int)
    for source, count in hlo.cycles(compiled.as_text()).items():
        part = next(part for part, marks in PARTS.items() if any(m in source for m in marks))
        sums[part] += count
    return sums
