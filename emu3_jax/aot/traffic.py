"""Bytes that the body of a program's loop moves from and to the main memory of a device.

The compiler's own sum (`cost_analysis`, "bytes accessed") counts what happens once before the loop,
the memory on the chip, and of an update in place the whole array. Here each instruction of the
body counts what it reads and writes: of a slice the slice, of an update in place the update, of
arrays on the chip nothing. Loops inside are multiplied out. The padding of tiles is left out.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from emu3_jax.aot.hlo import UnreadableError, computations, size_of, trips

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(?P<name>\S+) = (?P<type>.*?) (?P<kind>[a-z][\w-]*)\(")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLS = re.compile(r"(?:calls|to_apply|called_computations)=\{?%([\w.\-]+)")
_NUMBER = re.compile(r" parameter\((\d+)\)")
_BODY = re.compile(r"body=%([\w.\-]+)")
# An array with its layout; S(n) is another memory than the main one.
_ARRAY = re.compile(r"\b(?:pred|[a-z]+\d+\w*)\[[\d,]*\](?:\{[^}]*\})?")
_ELSEWHERE = re.compile(r"S\([1-9]\d*\)")

# Neither read nor write; the start of a copy or of a transfer counts, not its end.
_NO_TRAFFIC = frozenset(
    "parameter constant get-tuple-element tuple bitcast after-all iota partition-id replica-id "
    "copy-done async-done all-gather-done all-reduce-done collective-permute-done "
    "opt-barrier".split()
)
_RENAMED = ("bitcast", "reshape", "copy", "transpose", "convert")
_CUTS = ("slice", "dynamic-slice", "gather")
_UPDATE = "dynamic-update-slice"


class _Instruction(NamedTuple):
    name: str
    type: str
    kind: str
    operands: tuple[str, ...]
    line: str

    @property
    def is_root(self) -> bool:
        return self.line.lstrip().startswith("ROOT ")


def of_loop(text: str) -> int:
    """Returns the bytes of one pass through the largest loop of the main program.

    Args:
      text: of a compiled program.

    Raises:
      UnreadableError: the text is not a program, or has no loop.
    """
    entry, bodies = computations(text)
    program = {name: list(_instructions(lines)) for name, lines in bodies.items()}
    loops = [one for one in program[entry] if one.kind == "while"]
    if not loops:
        raise UnreadableError("the program has no loop")
    largest = max(loops, key=lambda one: size_of(one.type))
    return _Traffic(program, bodies).of_body(_BODY.search(largest.line)[1])


def _instructions(lines: list[str]) -> Iterator[_Instruction]:
    for line in lines:
        match = _INSTRUCTION.match(line)
        if match:
            operands = tuple(_OPERAND.findall(_arguments(line[match.end() :])))
            yield _Instruction(match["name"], match["type"], match["kind"], operands, line)


def _arguments(rest: str) -> str:
    """The text up to the bracket that closes the arguments."""
    depth = 1
    for at, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return rest[:at]
    return rest


class _Traffic:
    """The sums of one program."""

    def __init__(self, program: dict[str, list[_Instruction]], bodies: dict[str, list[str]]):
        self._program, self._bodies = program, bodies

    def of_body(self, name: str) -> int:
        """Bytes of a computation whose instructions run one by one."""
        types = {one.name: one.type for one in self._program[name]}
        return sum(self._of(one, types) for one in self._program[name])

    def _of(self, one: _Instruction, types: dict[str, str]) -> int:
        if one.kind in _NO_TRAFFIC or "AllocateBuffer" in one.line:
            return 0
        if one.kind == "while":
            return trips(one.line, self._bodies) * self.of_body(_BODY.search(one.line)[1])
        if one.kind == "conditional":
            branches = re.findall(r"%([\w.\-]+)", one.line.split("branch_computations=")[-1])
            return max(self.of_body(b) for b in branches if b in self._program)
        called = _CALLS.search(one.line)
        if one.kind in ("call", "async-start") and called:
            return self.of_body(called[1])
        if one.kind == "fusion":
            return self._of_fusion(one, called[1], types)
        if one.kind == _UPDATE:
            return 2 * _bytes(types[one.operands[1]])
        if one.kind in _CUTS:
            # What is cut out is where the whole is; the result may be on the chip.
            return _cut(one, types) + _bytes(one.type)
        if one.kind.endswith("-start"):  # (operands, results, and scalars)
            return _bytes(one.type)
        return sum(_bytes(types[o]) for o in one.operands if o in types) + _bytes(one.type)

    def _of_fusion(self, one: _Instruction, called: str, types: dict[str, str]) -> int:
        inside = self._program[called]
        read = 0
        for name, operand in zip(_parameters(inside), one.operands, strict=True):
            whole, part = _bytes(types[operand]), self._read(name, inside)
            read += whole if part is None else min(part, whole)
        root = next(i for i in inside if i.is_root)
        return read + self._written(root, {i.name: i for i in inside}, one.type)

    def _read(self, name: str, inside: list[_Instruction]) -> int | None:
        """Bytes that a fusion reads of a value in it; None if its result is the value, renamed."""
        whole, total = size_of(next(i for i in inside if i.name == name).type), 0
        for use in (i for i in inside if name in i.operands):
            part = None
            if use.kind in _CUTS and use.operands[0] == name:
                part = size_of(use.type)
            elif use.kind == _UPDATE and use.operands[0] == name:
                part = 0  # in place
            elif use.kind == "fusion":
                called, at = self._program[_CALLS.search(use.line)[1]], use.operands.index(name)
                part = self._read(_parameters(called)[at], called)
            elif use.kind not in _RENAMED:
                return whole
            if part is None:
                part = None if use.is_root else self._read(use.name, inside)
            if part is None:
                return None
            total += part
        return total

    def _written(self, root: _Instruction, by_name: dict[str, _Instruction], result: str) -> int:
        arrays = _ARRAY.findall(result)
        parts = [by_name[o] for o in root.operands] if root.kind == "tuple" else [root]
        total = 0
        for part, array in zip(parts, arrays, strict=False):
            while part.kind == "bitcast":
                part = by_name[part.operands[0]]
            if _bytes(array):
                is_update = part.kind == _UPDATE
                total += size_of(by_name[part.operands[1]].type) if is_update else _bytes(array)
        return total


def _parameters(inside: list[_Instruction]) -> list[str]:
    """Names of the parameters of a computation, in order."""
    found = [p for p in inside if p.kind == "parameter"]
    return [p.name for p in sorted(found, key=lambda p: int(_NUMBER.search(p.line)[1]))]


def _cut(one: _Instruction, types: dict[str, str]) -> int:
    return size_of(one.type) if _bytes(types.get(one.operands[0], "")) else 0


def _bytes(type_: str) -> int:
    """Bytes of the arrays of a type that are in main memory."""
    return sum(size_of(a) for a in _ARRAY.findall(type_) if not _ELSEWHERE.search(a))
