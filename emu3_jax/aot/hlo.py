"""Reads the text of a compiled program: what crosses the mesh, and how often.

A program is a list of computations that call one another. Instructions in the body of a loop count
as often as the loop runs, which is read from its condition.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import jax

_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
_HEAD = re.compile(r"^(ENTRY )?%?(\S+) \(.*\{$")
_COLLECTIVE = re.compile(rf" = (.+?) ({_KINDS})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|called_computations)=\{?%([\w.\-]+)")
_END = re.compile(r"%async-collective-done\S* = .*calls=%([\w.\-]+)")
_MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\S+)? \{('\w+'(?:,'\w+')*)\}"
)
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")


class UnreadableError(ValueError):
    """The compiler's text lacks what every supported version writes."""

    def __init__(self, what: str):
        super().__init__(
            f"cannot read what the compiler of jax {jax.__version__} writes: {what}; "
            "docs/how_to/aot.md names the versions that can be read"
        )


class Collective(NamedTuple):
    """One instruction that moves data between devices.

    Attributes:
      kind: "all-gather", "all-reduce", "reduce-scatter", "all-to-all" or "collective-permute".
      dtype: of the data, as XLA writes it.
      shape: of the largest array, on one device.
      bytes: size of all operands or of all results, whichever is larger; on one device.
      times: how often it runs per call of the program.
      source: the JAX operation it comes from.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    times: int
    source: str


def collectives(text: str) -> list[Collective]:
    """Returns all collectives of `compiled.as_text()`.

    A TPU overlaps transfers with other work. The instruction is then listed in the computation that
    starts the transfer, in those that run during it, and in the one that waits for its end. Only
    the first counts.

    Raises:
      UnreadableError: the text is not a program, or has a collective in an unknown form.
    """
    ends = set(_END.findall(text))
    found = []
    for name, line, times in _lines(text):
        match = _COLLECTIVE.search(line)
        if not match or name in ends or name.startswith("async_collective_fusion"):
            continue
        result, kind, start = match.groups()
        if _group_size(line) == 1:
            continue  # over a mesh axis of one device: nothing moves
        arrays = [_array(found) for found in _ARRAY.finditer(result)]
        if not arrays:
            raise UnreadableError(f"no array in the collective {line.strip()[:100]!r}")
        if start and kind != "all-reduce":  # (operands, results, and scalars for the hardware)
            arrays = [a for a in arrays if a[1]]
            half = len(arrays) // 2
            arrays = max(arrays[:half], arrays[half:], key=_size)
        size = _size(arrays)
        if "all-reduce-scatter" in name:
            kind = "reduce-scatter"  # a TPU's fusion of a sum and a cut
        elif kind == "reduce-scatter" and not start:
            size *= _group_size(line) or 1
        source = re.search(r'op_name="([^"]*)"', line)
        dtype, shape, _ = max(arrays, key=lambda a: a[2])
        found.append(Collective(kind, dtype, shape, size, times, source[1] if source else ""))
    return found


def cycles(text: str) -> dict[str, int]:
    """Returns JAX operation → clock cycles by the TPU compiler's estimate, loops multiplied out.

    Raises:
      UnreadableError: the text is not a program, or states no cycles.
    """
    sums: dict[str, int] = defaultdict(int)
    for _, line, times in _lines(text):
        match = re.search(r'"estimated_cycles":"(\d+)"', line)
        if match:
            source = re.search(r'op_name="([^"]*)"', line)
            sums[source[1] if source else ""] += times * int(match[1])
    if not sums:
        raise UnreadableError("the program states no estimated_cycles")
    return dict(sums)


def _lines(text: str) -> Iterator[tuple[str, str, int]]:
    """Yields (computation, line, how often it runs) for all lines reachable from the entry."""
    entry, bodies = computations(text)
    runs: dict[str, int] = defaultdict(int)
    _count(entry, 1, bodies, runs)
    for name, times in runs.items():
        for line in bodies[name]:
            yield name, line, times


def computations(text: str) -> tuple[str, dict[str, list[str]]]:
    """Returns (name of the entry, name → lines of each computation).

    Raises:
      UnreadableError: the text is not a program.
    """
    bodies: dict[str, list[str]] = {}
    entry = name = None
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head and not line.startswith(" "):
            name = head[2]
            bodies[name] = []
            entry = name if head[1] else entry
        elif name is not None:
            bodies[name].append(line)
    if entry is None:
        raise UnreadableError("the program has no ENTRY computation")
    return entry, bodies


def _count(name: str, times: int, bodies: dict[str, list[str]], runs: dict[str, int]) -> None:
    runs[name] += times
    for line in bodies[name]:
        called = set(_CALLED.findall(line))
        for branches in _BRANCHES.findall(line):
            called |= {part.strip().lstrip("%") for part in branches.split(",")}
        inside = times * (trips(line, bodies) if " while(" in line else 1)
        for other in called & bodies.keys():
            _count(other, inside, bodies, runs)


def trips(line: str, bodies: dict[str, list[str]]) -> int:
    """Returns how often a loop runs: as stated, or the bound in its condition; 1 without one."""
    known = re.search(r'known_trip_count[^\d]*"?(\d+)', line)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%([\w.\-]+)", line)
    if condition is None or condition[1] not in bodies:
        raise UnreadableError(f"the loop {line.strip()[:100]!r} has no condition")
    bounds = [
        int(bound)
        for inner in bodies[condition[1]]
        for bound in re.findall(r" s32\[\]\S* constant\((\d+)\)", inner)
    ]
    return max(bounds, default=1)


def _array(match: re.Match) -> tuple[str, tuple[int, ...], int]:
    """Returns (dtype, shape, bytes) of `bf16[4,8]`."""
    dtype, dimensions = match.groups()
    bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
    shape = tuple(int(d) for d in dimensions.split(",") if d)
    return dtype, shape, math.prod(shape) * bits // 8


def size_of(type_: str) -> int:
    """Returns the bytes of all arrays of a type, as XLA writes it."""
    return _size(_array(found) for found in _ARRAY.finditer(type_))


def _size(arrays) -> int:
    return sum(size for *_, size in arrays)


def _group_size(line: str) -> int | None:
    """Returns the devices per group: replica_groups={{0,1},{2,3}}, =[2,2]<=[4], or a mesh.

    None if the line does not state it (pairs of a permutation; {}: all devices).
    """
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return listed[1].count(",") + 1
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    if iota:
        return int(iota[1])
    mesh = _MESH_GROUPS.search(line)
    if mesh:
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        return math.prod(sizes[axis] for axis in re.findall(r"'(\w+)'", mesh[2]))
    unknown = re.search(r"replica_groups=(?!\{\}).{,60}", line)
    if unknown:
        raise UnreadableError(f"of a collective, {unknown[0]!r}")
    return None
