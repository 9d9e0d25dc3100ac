"""What a forward pass of decoding reads and takes, beside the least that it could.

Decoding is bound by memory, so the time of a pass is its bytes by the bandwidth of the chip, or its
products with weights by the peak of the chip if that is longer. The compiler's own times are not
usable: libtpu 0.0.42.1 states negative ones for programs with such a loop. Time on the network is
not included.
"""

from typing import NamedTuple

from emu3_jax.aot import traffic
from emu3_jax.aot.topology import Machine
from emu3_jax.train.run.metrics import peak_flops
from emu3_jax.train.tasks.language.transformer_programs import SampleProgram


class DecodingStep(NamedTuple):
    """Figures of a pass on one device, mean over an image.

    Attributes:
      gb, floor_gb: 10^9 bytes that it moves, and those that it must (`SampleProgram.floor_bytes`).
      ms, floor_ms: milliseconds; None if the bandwidth of the machine is not known.
      matmul_ms: of the products with weights alone, at the chip's peak.
      passes: of an image; None if chance decides.
    """

    gb: float
    floor_gb: float
    ms: float | None
    floor_ms: float | None
    matmul_ms: float | None
    passes: int | None

    @property
    def ratio(self) -> float:
        """How many times the least it moves."""
        return self.gb / self.floor_gb

    def rows(self) -> list[tuple[str, str]]:
        """The lines of a table."""
        found = [
            ("a pass moves", f"{self.gb:.3f} GB per device, {self.ratio:.2f} x {self.floor_gb:.3f}")
        ]
        if self.ms is not None:
            of_least = f"{self.ms:.2f} ms, at the least {self.floor_ms:.2f}"
            found.append(("a pass takes", f"{of_least}; products {self.matmul_ms:.2f}"))
        if self.ms is not None and self.passes:
            seconds = [self.passes * ms / 1e3 for ms in (self.ms, self.floor_ms)]
            found.append(("an image takes", f"{seconds[0]:.1f} s, at the least {seconds[1]:.1f}"))
        return found


def measure(program: SampleProgram, machine: Machine) -> DecodingStep | None:
    """Returns the figures; None for a CPU, whose programs move other things.

    The cache is read in stages (`scheduling.live_slots`). The first and the last are compiled; what
    a pass moves in between lies on the line through both.
    """
    if machine.devices[0].platform == "cpu":
        return None
    stages = program.live_slots()
    first, last = min(stages), max(stages)
    moved = {
        live: traffic.of_loop(program.lower(machine.devices, live).compile().as_text())
        for live in (first, last)
    }
    share = (sum(stages) / len(stages) - first) / (last - first)
    here = moved[first] + share * (moved[last] - moved[first])
    floor = program.floor_bytes(machine.devices)
    found = DecodingStep(here / 1e9, floor / 1e9, None, None, None, program.passes())
    if machine.hbm_gb_per_s is None:
        return found
    matmul_ms = (
        1e3 * program.matmul_flops(machine.devices) / peak_flops(machine.devices[0].device_kind)
    )
    times = [max(1e3 * gb / machine.hbm_gb_per_s, matmul_ms) for gb in found[:2]]
    return found._replace(ms=times[0], floor_ms=times[1], matmul_ms=matmul_ms)
