"""Registers that a path may read before it has written them.

Compilers leave such registers in lanes whose result nobody uses, and let them through arithmetic and shuffles. So
the mark of a lane travels with its values, and is a finding where it would show: in memory, in an address, in a branch
or a predicate. Only registers that a marked value can reach are watched; mostly there are none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ptx_machine.decode import Mask, decode_one
from ptx_machine.parse import Entry, Instruction

if TYPE_CHECKING:
    from ptx_machine.program import Program
    from ptx_machine.warps import Warps

_SHOWS = ("st", "red", "atom", "cp", "stmatrix", "ldmatrix", "ld", "mma", "bra")


def reached(entry: Entry, registers: list[tuple[list[str], list[str]]], suspects: frozenset[str]) -> frozenset[str]:
    """Suspects and all that can be computed from them."""
    watched = set(suspects)
    size = -1
    while watched and size != len(watched):
        size = len(watched)
        for source, (reads, writes) in zip(entry.instructions, registers, strict=True):
            if source.name not in _SHOWS and not watched.isdisjoint(reads):
                watched.update(writes)
    return frozenset(watched)


class Poison:
    """Marks of the watched registers, for some warps."""

    def __init__(self, warps: Warps, program: Program) -> None:
        self.warps, self.program = warps, program
        self.marks = {name: np.ones(warps.lanes, bool) for name in program.watched}

    def begin(self) -> None:
        for marks in self.marks.values():
            marks[:] = True

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
        carry = self._carrier(at, source, read)

        def watched(mask: Mask) -> None:
            if source.name in _SHOWS:
                for name in read:
                    self._report(at, name, mask)
            marked = carry() if written else False
            run(mask)
            for name in written:
                if mask is None:
                    self.marks[name][:] = marked
                else:
                    np.copyto(self.marks[name], marked, where=mask)

        return watched

    def _report(self, at: int, name: str, mask: Mask) -> None:
        bad = self.marks[name] if mask is None else self.marks[name] & mask
        if bad.any():
            self.warps.find("never written", at, f"depends on a register that nothing has written, through {name}", bad)

    def _carrier(self, at: int, source: Instruction, read: list[str]) -> Callable[[], np.ndarray | bool]:
        """Computes the marks of the result."""
        if source.name in _SHOWS or not read:
            return lambda: False
        marks = [self.marks[name] for name in read]
        if source.name == "shfl":
            return self._shuffled(at, source)
        if source.name in ("redux", "vote", "match"):
            return lambda: np.repeat(np.logical_or.reduce(marks).reshape(-1, 32).any(1), 32)
        if source.name in ("and", "or") and source.parts[-1] == "pred":
            return lambda: self._decided(source, source.name == "or")
        if source.name == "selp":
            return lambda: self._selected(source)
        return lambda: np.logical_or.reduce(marks)

    def _mark(self, name: str) -> np.ndarray:
        found = self.marks.get(name)
        return np.zeros(self.warps.lanes, bool) if found is None else found

    def _decided(self, source: Instruction, by: bool) -> np.ndarray:
        """x and false is false, x or true is true, whatever x is."""
        a, b = (self._mark(name) for name in source.operands[1:3])
        values = [self.warps.read(name, "pred") for name in source.operands[1:3]]
        known = (~a & (values[0] == by)) | (~b & (values[1] == by))
        return (a | b) & ~known

    def _selected(self, source: Instruction) -> np.ndarray:
        a, b, chosen = (self._mark(name) for name in source.operands[1:4])
        return np.where(self.warps.read(source.operands[3], "pred"), a, b) | chosen

    def _shuffled(self, at: int, source: Instruction) -> Callable[[], np.ndarray]:
        """The same shuffle, of the marks."""
        entry = self.program.entry
        names = ("%mark in", "%mark out")
        entry.registers.update(dict.fromkeys(names, "b32"))
        copy = replace(source, operands=(names[1], names[0], *source.operands[2:]), guard=None)
        shuffle = decode_one(replace_instruction(entry, copy), 0).bind(self.warps)
        into, out = self.warps.read(names[0], "b32"), self.warps.read(names[1], "b32")

        def carry() -> np.ndarray:
            into[:] = self._mark(source.operands[1])
            self.warps.checking = False
            shuffle(None)
            self.warps.checking = True
            return out != 0

        return carry


def replace_instruction(entry: Entry, source: Instruction) -> Entry:
    """The entry with one instruction only."""
    return replace(entry, instructions=[source])
