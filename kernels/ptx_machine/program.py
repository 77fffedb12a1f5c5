"""A compiled kernel, decoded: its steps, its runs without a branch, and static analysis."""

from __future__ import annotations

import re
from functools import lru_cache

from ptx_machine.decode import decode, reads_and_writes
from ptx_machine.parse import SPECIAL, Entry, Instruction, MachineError, parse

# Instructions in which a register without a value shows: in memory, in an address, in a branch.
SHOWS = ("st", "red", "atom", "cp", "stmatrix", "ldmatrix", "ld", "mma", "bra")
_CLASSES = {
    "shfl": "shuffle", "redux": "shuffle", "vote": "shuffle", "bar": "barrier", "bra": "branch", "ret": "branch",
    "exit": "branch", "mma": "matrix", "ldmatrix": "shared load", "stmatrix": "shared store", "atom": "atomic",
    "red": "atomic", "cp": "async copy", "cvt": "convert", "mov": "move", "cvta": "move", "selp": "select",
    "setp": "compare", "rcp": "special", "sqrt": "special", "rsqrt": "special", "ex2": "special", "lg2": "special",
    "sin": "special", "cos": "special", "tanh": "special", "fence": "barrier", "membar": "barrier", "and": "logic",
    "or": "logic", "xor": "logic", "not": "logic", "shl": "logic", "shr": "logic", "lop3": "logic", "shf": "logic",
    "prmt": "logic", "bfe": "logic", "bfi": "logic",
}  # fmt: skip


def class_of(source: Instruction) -> str:
    """The class that an instruction is counted under."""
    if source.name in ("ld", "st"):
        direction = "load" if source.name == "ld" else "store"
        for space in ("global", "shared", "param"):
            if any(part.split("::")[0] == space for part in source.parts[1:]):
                return f"{space} {direction}"
    kind_of = _CLASSES.get(source.name)
    if kind_of:
        return kind_of
    kind = source.parts[-1]
    if kind.startswith(("f", "bf")):
        return kind
    return "integer"


class Program:
    def __init__(self, entry: Entry, threads: int, shared: int) -> None:
        self.entry, self.threads, self.shared = entry, threads, shared
        self.steps = [decode(entry, at) for at in range(len(entry.instructions))]
        if not self.steps or self.steps[-1].control not in ("ret", "bra"):
            raise MachineError(f"{entry.name} does not end with ret")
        self.targets = [entry.labels[step.target] if step.control == "bra" else -1 for step in self.steps]
        self.registers = [reads_and_writes(entry, source) for source in entry.instructions]
        self.leaders = {0, *entry.labels.values()}
        self.leaders |= {at + 1 for at, step in enumerate(self.steps) if step.control}
        self.classes = [class_of(source) for source in entry.instructions]
        self.watched = _tainted(entry, self.registers, self._maybe_unwritten())
        self._origins = self._follow_parameters()
        self.written = self._written_parameters()
        self.loops = {
            self.targets[at]: step.target
            for at, step in enumerate(self.steps)
            if step.control == "bra" and self.targets[at] <= at
        }
        self.pool: list[object] = []  # of blocks ready to run again

    def end_of_run(self, start: int) -> int:
        """The first instruction from `start` that branches, waits or may be jumped to."""
        at = start
        while at < len(self.steps) and not self.steps[at].control and (at == start or at not in self.leaders):
            at += 1
        return at

    def successors(self, at: int) -> list[int]:
        """The instructions that may follow an instruction."""
        step, guarded = self.steps[at], self.entry.instructions[at].guard is not None
        following = [at + 1] if at + 1 < len(self.steps) else []
        if step.control == "bra":
            return [self.targets[at]] + (following if guarded else [])
        if step.control == "ret":
            return following if guarded else []
        return following

    def _maybe_unwritten(self) -> frozenset[str]:
        """Registers that some path reads before it has written them: marked while they run."""
        number = {name: 1 << i for i, name in enumerate(self.entry.registers)}
        special = sum(bit for name, bit in number.items() if name in SPECIAL)
        reads = [sum({number[name] for name in read}) for read, _ in self.registers]
        writes = [
            0 if self.entry.instructions[at].guard else sum({number[name] for name in written})
            for at, (_, written) in enumerate(self.registers)
        ]
        known: list[int | None] = [None] * len(self.steps)
        known[0] = special
        work = [0]
        while work:
            at = work.pop()
            after = (known[at] or 0) | writes[at]
            for following in self.successors(at):
                before = known[following]
                narrowed = after if before is None else before & after
                if narrowed != before:
                    known[following] = narrowed
                    work.append(following)
        missing = 0
        for at, read in enumerate(reads):
            if known[at] is not None:
                missing |= read & ~(known[at] or 0)
        return frozenset(name for name, bit in number.items() if missing & bit)

    def _follow_parameters(self) -> dict[str, set[int]]:
        """Parameters that a register's value may come from."""
        index = {name: i for i, (_, name, _) in enumerate(self.entry.params)}
        origin: dict[str, set[int]] = {}
        shared: set[int] = set()
        changed = True
        while changed:
            changed = False
            for source, (reads, writes) in zip(self.entry.instructions, self.registers, strict=True):
                flow: set[int] = set()
                if source.name == "ld" and "param" in source.parts:
                    flow = {index[source.operands[1].strip("[] ").split("+")[0].strip()]}
                elif source.name in ("ld", "ldmatrix") and any(part.startswith("shared") for part in source.parts):
                    flow = shared
                elif source.name not in ("ld", "atom", "setp"):
                    flow = set().union(*(origin.get(name, set()) for name in reads))
                if source.name in ("st", "stmatrix") and any(part.startswith("shared") for part in source.parts):
                    new = flow - shared
                    shared |= new
                    changed |= bool(new)
                for name in writes:
                    new = flow - origin.get(name, set())
                    if new:
                        origin.setdefault(name, set()).update(new)
                        changed = True
        return origin

    def arguments_of(self, at: int) -> set[int]:
        """Pointers among the parameters, by number, that an access's address may come from."""
        where = " ".join(operand for operand in self.entry.instructions[at].operands if operand.startswith("["))
        names = re.findall(r"%[\w$.]+", where)
        return set().union(*(self._origins.get(name, set()) for name in names)) & self.entry.pointers

    def _written_parameters(self) -> set[int]:
        """Parameters that an address written to may come from. Only their tensors need watching for races."""
        written: set[int] = set()
        for at, source in enumerate(self.entry.instructions):
            if source.name in ("st", "red", "atom") and "global" in {part.split("::")[0] for part in source.parts}:
                written |= self.arguments_of(at)
        return written

    def dead_results(self) -> set[int]:
        """Instructions that write registers which no path reads again."""
        number = {name: 1 << i for i, name in enumerate(self.entry.registers)}
        reads = [sum({number[name] for name in read}) for read, _ in self.registers]
        writes = [sum({number[name] for name in written}) for _, written in self.registers]
        before = [0] * len(self.steps)
        predecessors: dict[int, list[int]] = {}
        for at in range(len(self.steps)):
            for following in self.successors(at):
                predecessors.setdefault(following, []).append(at)
        work, dead = list(range(len(self.steps))), set(range(len(self.steps)))
        while work:
            at = work.pop()
            after = 0
            for following in self.successors(at):
                after |= before[following]
            if after & writes[at] or not writes[at]:
                dead.discard(at)
            killed = 0 if self.entry.instructions[at].guard else writes[at]
            live = (after & ~killed) | reads[at]
            if live != before[at]:
                before[at] = live
                work.extend(predecessors.get(at, []))
        return dead


def _tainted(entry: Entry, registers: list[tuple[list[str], list[str]]], suspects: frozenset[str]) -> frozenset[str]:
    """Suspects and all that can be computed from them."""
    watched = set(suspects)
    size = -1
    while watched and size != len(watched):
        size = len(watched)
        for source, (reads, writes) in zip(entry.instructions, registers, strict=True):
            if source.name not in SHOWS and not watched.isdisjoint(reads):
                watched.update(writes)
    return frozenset(watched)


@lru_cache(maxsize=8)  # a program keeps its registers and bound instructions
def load(ptx: str, threads: int, shared: int) -> Program:
    return Program(parse(ptx), threads, shared)
