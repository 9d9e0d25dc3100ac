"""Devices of a machine that is not there, by its name: TPU slices through libtpu, or CPUs.

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
    """What a compiler and a reader need to know of one kind of TPU.

    Attributes:
      dimensions: of the network between chips.
      hbm_gib: memory that a program may have on a JAX device.
      devices: JAX devices a chip.
      torus: a side of a slice closes into a ring where its length is a multiple of this.
    """

    dimensions: int
    hbm_gib: float
    torus: int
    devices: int = 1


# Cloud TPU documentation, the page of each version ("System architecture"): shape of the network,
# and which slices are tori: cubes of 4 x 4 x 4, or whole sides of 16. Memory: what each chip's
# compiler says is available when it refuses a program (the smaller of libtpu 0.0.42 and 0.0.50), so
# that a plan is judged as the compiler judges it.
CHIPS = {
    "v4": Chip(3, 30.75, 4),
    "v5e": Chip(2, 15.75, 16),
    "v5p": Chip(3, 95.73, 4),
    "v6e": Chip(2, 31.24, 16),
    "tpu7x": Chip(3, 94.74, 4, devices=2),
}


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices to compile for.

    Attributes:
      name: as given.
      devices: JAX devices that can be compiled for, and nothing else.
      chips: how many chips these are.
      hbm_gib: memory of a device; None where there is no limit to judge by.
      slices: how many of the name's.
    """

    name: str
    devices: list
    chips: int
    hbm_gib: float | None
    slices: int = 1

    @property
    def is_tpu(self) -> bool:
        """Whether the compiler is the one of the machine's name."""
        return self.devices[0].platform == "tpu"


def machine(name: str, slices: int = 1, hbm_gib: float | None = None) -> Machine:
    """The machine called `name`; CPUs need that nobody has asked JAX for its devices before.

    Args:
      name: see the module's text.
      slices: of a TPU, all of this shape.
      hbm_gib: memory of a device to judge by; None: the chip's.

    Raises:
      ValueError: no such machine, or the TPU compiler is not installed.
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
            f"--topology={name!r} is no machine: expected one of {', '.join(CHIPS)} with its "
            "sides, as in v5p:4x4x4 or v5e:16x16, or cpu:N"
        )
    devices = _tpus(name, sides, slices)
    known = CHIPS[chip]
    chips = len(devices) // known.devices
    return Machine(name, devices, chips, hbm_gib or known.hbm_gib, slices)


def _virtual_cpus(count: int) -> list:
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        pass  # JAX has its devices already; there may be enough
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(f"{count} CPU devices are asked for, this process has {len(devices)}")
    return devices[:count]


def _tpus(name: str, sides: list[int], slices: int) -> list:
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"--topology={name} needs the TPU compiler: pip install -r requirements-aot.txt; "
            "cpu:N needs none"
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else it asks a cloud that is not there
    # Only the compiler is used, no TPU, so several processes may.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    chip = CHIPS[name.partition(":")[0]]
    whole = [side % chip.torus == 0 for side in sides]
    # Of a cube of chips all sides are rings or none is. Where the compiler is not told of the
    # rings, it makes of every gather an all-reduce of zeros, at a cost in memory and time.
    wrap = (*whole, False) if chip.dimensions == 2 else (all(whole),) * 3
    # One JAX device a chip, as on the machine itself; it is the default but for v4.
    core = {"chip_config_name": "megacore"} if name.startswith("v4") else {}
    try:
        description = topologies.get_topology_desc(
            name, platform="tpu", num_slices=slices, wrap=wrap, **core
        )
    except Exception as error:
        raise ValueError(f"--topology={name}: the TPU compiler knows no such slice") from error
    return list(description.devices)
