"""Registers that a path may read before it has written them.

Compilers leave such registers in lanes whose result is not used, and pass them through arithmetic and shuffles. The
mark of a lane therefore travels with its values, and becomes a finding where it has an effect: in memory, an address, a
branch or a predicate. Only registers that a marked value can reach are watched; usually there are none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ptx_machine.decode import decode
from ptx_machine.numbers import Mask
from ptx_machine.parse import Instruction
from ptx_machine.program import SHOWS, Program
from ptx_machine.warps import Warps


class Poison:
    """Marks of the watched registers, for some warps: in each lane a bit for each 16 bits that have no value.

    Parts of a register are told apart because compilers pack two numbers, of which one may be nothing, to use packed
    arithmetic, and unpack the other.
    """

    def __init__(self, warps: Warps, program: Program) -> None:
        self.warps, self.program = warps, program
        registers = program.entry.registers
        self.full = {name: _full(registers[name]) for name in program.watched}
        self.marks = {name: np.full(warps.lanes, self.full[name], np.uint8) for name in program.watched}

    def begin(self) -> None:
        for name, marks in self.marks.items():
            marks[:] = self.full[name]

    def guarded(self, at: int, mask: Mask) -> None:
        """A predicate that decides something must be known."""
        guard = self.program.entry.instructions[at].guard
        if guard is not None and guard[0] in self.marks:
            self._report(at, guard[0], mask)

    def watch(self, at: int, run: Callable[[Mask], None]) -> Callable[[Mask], None]:
        """`run`, with the marks of what it reads carried to what it writes, or reported."""
        source = self.program.entry.instructions[at]
        reads, writes = self.program.registers[at]
        guard = source.guard[0] if source.guard else ""
        read = [name for name in reads if name in self.marks and name != guard]
        written = [name for name in writes if name in self.marks]
        if not read and not written:
            return run
        carry = self._carrier(at, source, read, written)

        def watched(mask: Mask) -> None:
            if source.name in SHOWS:
                for name in read:
                    self._report(at, name, mask)
            marked = carry()
            run(mask)
            for name in written:
                np.copyto(self.marks[name], marked[name], where=True if mask is None else mask)

        return watched

    def _report(self, at: int, name: str, mask: Mask) -> None:
        bad = self.marks[name] != 0 if mask is None else (self.marks[name] != 0) & mask
        if bad.any():
            self.warps.find("never written", at, f"depends on a register that nothing has written, through {name}", bad)

    def _carrier(
        self, at: int, source: Instruction, read: list[str], written: list[str]
    ) -> Callable[[], dict[str, np.ndarray]]:
        """Computes the marks of the results."""
        if source.name in SHOWS or not read:
            clean = {name: np.zeros(self.warps.lanes, np.uint8) for name in written}
            return lambda: clean
        if source.name == "mov" and "{" in source.text:
            return lambda: self._packed(source, written)
        if source.name == "mov" or (source.parts[-1].endswith("x2") and source.name != "setp"):
            half = 2 if source.parts[-1] == "f32x2" else 1
            return lambda: dict.fromkeys(written, _spread(np.bitwise_or.reduce([self.marks[n] for n in read]), half))
        if source.name == "selp":
            return lambda: dict.fromkeys(written, self._selected(source, self.full[written[0]]))
        if source.name == "shfl":
            rule: Callable[[], np.ndarray] = self._shuffled(at, source)
        elif source.name in ("redux", "vote"):
            rule = lambda: np.repeat(self._any(read).reshape(-1, 32).any(1), 32)  # noqa: E731
        elif source.name in ("and", "or") and source.parts[-1] == "pred":
            rule = lambda: self._decided(source, source.name == "or")  # noqa: E731
        else:
            rule = lambda: self._any(read)  # noqa: E731

        def whole() -> dict[str, np.ndarray]:
            bad = rule()
            return {name: np.where(bad, self.full[name], 0).astype(np.uint8) for name in written}

        return whole

    def _any(self, names: list[str]) -> np.ndarray:
        return np.logical_or.reduce([self.marks[name] != 0 for name in names])

    def _mark(self, name: str) -> np.ndarray:
        mark = self.marks.get(name)
        return np.zeros(self.warps.lanes, np.uint8) if mark is None else mark

    def _packed(self, source: Instruction, written: list[str]) -> dict[str, np.ndarray]:
        """mov.b64 %rd, {%r, %r} and mov.b64 {%r, %r}, %rd: the bits of the parts, side by side."""
        packs = source.operands[1].startswith("{")
        whole, listed = source.operands if packs else source.operands[::-1]
        parts = [name.strip() for name in listed.strip("{} ").split(",")]
        width = int(source.parts[-1][1:]) // 16 // len(parts)
        if packs:
            joint = [self._mark(name) << np.uint8(width * i) for i, name in enumerate(parts)]
            return {whole: np.bitwise_or.reduce(joint)}
        bits = self._mark(whole)
        one = np.uint8((1 << width) - 1)
        return {name: bits >> np.uint8(width * i) & one for i, name in enumerate(parts) if name in written}

    def _decided(self, source: Instruction, by: bool) -> np.ndarray:
        """x and false is false, x or true is true, whatever x is."""
        a, b = (self._mark(name) != 0 for name in source.operands[1:3])
        values = [self.warps.read(name, "pred") for name in source.operands[1:3]]
        known = (~a & (values[0] == by)) | (~b & (values[1] == by))
        return (a | b) & ~known

    def _selected(self, source: Instruction, full: int) -> np.ndarray:
        a, b, chosen = (self._mark(name) for name in source.operands[1:4])
        return np.where(chosen != 0, np.uint8(full), np.where(self.warps.read(source.operands[3], "pred"), a, b))

    def _shuffled(self, at: int, source: Instruction) -> Callable[[], np.ndarray]:
        """The same shuffle, of the marks."""
        entry = self.program.entry
        names = ("%mark in", "%mark out")
        entry.registers.update(dict.fromkeys(names, "b32"))
        copy = replace(source, operands=(names[1], names[0], *source.operands[2:]), guard=None)
        shuffle = decode(replace(entry, instructions=[copy]), 0).bind(self.warps)
        into, out = self.warps.read(names[0], "b32"), self.warps.read(names[1], "b32")

        def carry() -> np.ndarray:
            into[:] = self._mark(source.operands[1])
            self.warps.checking = False
            shuffle(None)
            self.warps.checking = True
            return out != 0

        return carry


def _full(kind: str) -> int:
    """A bit for each 16 bits of a register."""
    return {"64": 15, "32": 3}.get(kind[-2:], 1)


def _spread(marks: np.ndarray, width: int) -> np.ndarray:
    """Groups of `width` bits: all of them if one is set."""
    if width == 1:
        return marks
    low, high = marks & 3, marks & 12
    return np.where(low, 3, 0).astype(np.uint8) | np.where(high, 12, 0).astype(np.uint8)
