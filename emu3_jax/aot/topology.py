"""Devices of a machine by its name, without the machine: TPU slices through libtpu, or CPUs.

v5p:4x4x4   one slice of 64 chips
cpu:64      64 virtual CPU devices: layouts and collectives, but not a TPU's memory or time
"""

import dataclasses
import importlib.util
import os
import re

import jax
from jax.experimental import topologies


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU chip.

    Attributes:
      dimensions: dimensions of the network between chips.
      hbm_gib: memory available to a program on one JAX device.
      devices: JAX devices per chip.
      hbm_gb_per_s: 10^9 bytes per second of the memory of one JAX device; None if not looked up.
      torus: a side of a slice closes into a ring if its length is a multiple of this.
    """

    dimensions: int
    hbm_gib: float
    torus: int
    devices: int = 1
    hbm_gb_per_s: float | None = None


# Network shapes and which slices are tori (cubes of 4 x 4 x 4, or whole sides of 16): Cloud TPU
# documentation, the page of each version ("System architecture"). Memory: what each chip's compiler
# reports as available when it refuses a program (the smaller of libtpu 0.0.42 and 0.0.50), so that
# a plan is judged as the compiler judges it. Bandwidth: the same pages.
CHIPS = {
    "v4": Chip(3, 30.75, 4, hbm_gb_per_s=1200.0),
    "v5e": Chip(2, 15.75, 16, hbm_gb_per_s=819.0),
    "v5p": Chip(3, 95.73, 4, hbm_gb_per_s=2765.0),
    "v6e": Chip(2, 31.24, 16),
    "tpu7x": Chip(3, 94.74, 4, devices=2),
}


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices to compile for.

    Attributes:
      name: as given to `machine`.
      devices: JAX devices; they can be compiled for but not run on.
      chips: number of chips.
      hbm_gib: memory of a device; None for no limit.
      slices: number of slices.
      hbm_gb_per_s: as of `Chip`.
    """

    name: str
    devices: list
    chips: int
    hbm_gib: float | None
    slices: int = 1
    hbm_gb_per_s: float | None = None

    @property
    def is_tpu(self) -> bool:
        """Whether the devices are TPUs, so that the TPU compiler is used."""
        return self.devices[0].platform == "tpu"


def machine(name: str, slices: int = 1, hbm_gib: float | None = None) -> Machine:
    """Returns the machine called `name`.

    For cpu:N, call it before JAX has initialised its devices.

    Args:
      name: as in the module docstring.
      slices: number of TPU slices, all of this shape.
      hbm_gib: memory limit of a device; None for the chip's.

    Raises:
      ValueError: there is no such machine, or the TPU compiler is not installed.
    """
    chip, _, shape = name.partition(":")
    if slices < 1:
        raise ValueError(f"--slices={slices} must be 1 or more")
    if chip == "cpu" and shape.isdecimal() and int(shape):
        if slices > 1:
            raise ValueError(f"--slices={slices} is for TPUs, --topology is {name}")
        return Machine(name, _virtual_cpus(int(shape)), int(shape), hbm_gib)
    sides = [int(side) for side in shape.split("x")] if re.fullmatch(r"\d+(x\d+)*", shape) else []
    if chip not in CHIPS or len(sides) != CHIPS[chip].dimensions:
        raise ValueError(
            f"--topology={name!r} is not a machine: expected one of {', '.join(CHIPS)} with its "
            "sides, as in v5p:4x4x4 or v5e:16x16, or cpu:N"
        )
    devices = _tpus(name, sides, slices)
    known = CHIPS[chip]
    chips = len(devices) // known.devices
    limit = hbm_gib or known.hbm_gib
    return Machine(name, devices, chips, limit, slices, known.hbm_gb_per_s)


def _virtual_cpus(count: int) -> list:
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        pass  # JAX has initialised its devices; there may be enough
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(f"{count} CPU devices are requested, this process has {len(devices)}")
    return devices[:count]


def _tpus(name: str, sides: list[int], slices: int) -> list:
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"--topology={name} needs the TPU compiler: pip install -r requirements-aot.txt; "
            "cpu:N needs none"
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else it queries a cloud's metadata server
    # Only the compiler is used, no TPU, so several processes may load it.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    chip = CHIPS[name.partition(":")[0]]
    whole = [side % chip.torus == 0 for side in sides]
    # In three dimensions, all sides are rings or none is. Without the rings, the compiler turns
    # every gather into an all-reduce of zeros, at a cost in memory and time.
    wrap = (*whole, False) if chip.dimensions == 2 else (all(whole),) * 3
    # One JAX device per chip, as on the machine itself; the default except for v4.
    core = {"chip_config_name": "megacore"} if name.startswith("v4") else {}
    try:
        description = topologies.get_topology_desc(
            name, platform="tpu", num_slices=slices, wrap=wrap, **core
        )
    except Exception as error:
        raise ValueError(f"--topology={name}: the TPU compiler has no such slice") from error
    return list(description.devices)
