"""Figures of a compiled program, as a table and as one line of JSON."""

import dataclasses
import re
from collections.abc import Iterable
from typing import NamedTuple

import jax

from emu3_jax.aot import hlo
from emu3_jax.aot.topology import Machine
from emu3_jax.train.run.metrics import peak_flops

GIB = 2**30
# Messages with which the TPU compiler refuses a program: needed, available.
_TOO_LARGE = (
    re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm"),
    re.compile(r"temporaries \(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)"),
)


class Estimate(NamedTuple):
    """The compiler's estimate of one update.

    Attributes:
      seconds: extrapolated to all layers, see estimate.py.
      parts: part of the step → share of its clock cycles.
      compiled_s: number of layers → seconds, as compiled.
    """

    seconds: float
    parts: dict[str, float]
    compiled_s: dict[int, float]


@dataclasses.dataclass(frozen=True)
class Report:
    """Figures of one program on one machine; memory and collectives are per JAX device.

    Attributes:
      arguments_gib: state, batch and constants that are passed in (donated ones are reused).
      temporaries_gib: the heap that holds everything else.
      hbm_gib: both, plus outputs and code with memory of their own; the compiler decides by it.
      limit_gib: memory of the device; None if it is unknown.
      fits: whether `hbm_gib` is within the limit.
      compile_s: seconds that compiling, or planning, took here.
      collectives: kind → {"count", "gib"} of one call, loops multiplied out.
      model_tflops_per_chip: model FLOPs of one call per chip, in units of 10^12.
      compiler_estimate_s: seconds per call by the TPU compiler's own estimate, which leaves out the
        time on the network; None without an estimate.
      estimated_mfu: share of the chip's peak at that speed.
      code_gib: size of the code; None if only the compiler's plan was made.
      memory_analysis_gib: temporaries as `Compiled.memory_analysis()` counts them; None if only the
        compiler's plan was made.
      decoding: fields of `DecodingStep`, of a program that decodes.
    """

    arguments_gib: float | None
    temporaries_gib: float | None
    hbm_gib: float
    limit_gib: float | None
    fits: bool
    compile_s: float
    collectives: dict
    model_tflops_per_chip: float
    compiler_estimate_s: float | None = None
    estimated_mfu: float | None = None
    code_gib: float | None = None
    memory_analysis_gib: float | None = None
    decoding: dict | None = None

    def to_json(self) -> dict:
        """Returns the fields as a dict, floats rounded to four digits."""
        return jax.tree.map(
            lambda x: float(f"{x:.4g}") if isinstance(x, float) else x, dataclasses.asdict(self)
        )

    def with_estimate(self, found: Estimate | None, machine: Machine) -> "Report":
        """Returns the report with the estimate's time and MFU; unchanged if `found` is None."""
        if found is None:
            return self
        peak = peak_flops(machine.devices[0].device_kind) * len(machine.devices) / machine.chips
        return dataclasses.replace(
            self,
            compiler_estimate_s=found.seconds,
            estimated_mfu=self.model_tflops_per_chip * 1e12 / (found.seconds * peak),
        )


def too_large(error: Exception) -> tuple[float, float]:
    """Returns (needed, available) GiB from the TPU compiler's refusal; else raises `error`."""
    said = next(filter(None, (pattern.search(str(error)) for pattern in _TOO_LARGE)), None)
    if said is None:
        raise error
    return _gib(*said.groups()[:2]), _gib(*said.groups()[2:])


def _gib(number: str, unit: str) -> float:
    return float(number) * 1024.0 ** ("KMGT".index(unit) - 2)


def summed(collectives: Iterable[hlo.Collective]) -> dict[str, dict]:
    """Returns kind → {"count", "gib"}, summed over the collectives."""
    sums: dict[str, dict] = {}
    for one in collectives:
        entry = sums.setdefault(one.kind, {"count": 0, "gib": 0.0})
        entry["count"] += one.times
        entry["gib"] += one.times * one.bytes / GIB
    return dict(sorted(sums.items()))


def table(
    report: Report,
    title: str,
    found: Estimate | None = None,
    more: Iterable[tuple[str, str]] = (),
) -> str:
    """Returns the figures as an aligned text table under `title`, with `more` lines at the end."""

    def gib(x):
        return "unknown" if x is None else f"{x:.2f} GiB"

    tflops = report.model_tflops_per_chip
    rows = [
        ("arguments", gib(report.arguments_gib)),
        ("temporaries", gib(report.temporaries_gib)),
        ("  by memory_analysis", gib(report.memory_analysis_gib)),
        ("code", gib(report.code_gib)),
        ("in all", f"{gib(report.hbm_gib)} of {gib(report.limit_gib)} per device"),
        ("fits", "yes" if report.fits else "no"),
        ("compiled in" if report.code_gib else "planned in", f"{report.compile_s:.0f} s"),
        ("model FLOPs per chip", f"{tflops:.1f} T" if tflops else "not counted"),
    ]
    for kind, entry in report.collectives.items():
        rows.append((kind, f"{entry['count']} times, {entry['gib']:.2f} GiB"))
    if found is not None:
        few, more = (f"{s:.3f} s at {n} layers" for n, s in found.compiled_s.items())
        rows.append(("compiler's estimate", f"{found.seconds:.3f} s (from {few}, {more})"))
        rows.append(("MFU at that speed", f"{report.estimated_mfu:.1%}"))
        rows += [(f"  {part}", f"{share:.1%}") for part, share in found.parts.items()]
    rows += more
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows)])
