"""Faults of one instruction each, planted in PTX, to measure what the checks and tests would miss."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ptx_machine.parse import Entry, parse
from ptx_machine.program import Program
from ptx_machine.report import Executed

KINDS = ("opcode", "operand", "constant", "offset", "predicate", "dropped")
_OPCODES = {
    "add": ("sub",), "sub": ("add",), "mul": ("add",), "min": ("max",), "max": ("min",), "and": ("or",), "or": ("and",),
    "xor": ("or",), "shl": ("shr",), "shr": ("shl",),
}  # fmt: skip
_COMPARISONS = {
    "lt": ("le", "ge"),
    "le": ("lt", "gt"),
    "gt": ("ge", "le"),
    "ge": ("gt", "lt"),
    "eq": ("ne",),
    "ne": ("eq",),
}
_CONTROL = "ret", "exit", "bra"  # to drop one of these makes a program without an end, too easy to detect


@dataclass(frozen=True)
class Mutant:
    at: int  # the instruction's number
    kind: str
    place: str
    before: str
    after: str
    ptx: str


def lines_of(ptx: str, entry: Entry) -> dict[int, int]:
    """Instruction -> the line of the text that it stands in, where it stands there alone."""
    lines = [_statement(line) for line in ptx.splitlines()]
    line_of, start = {}, 0
    for number, source in enumerate(entry.instructions):
        for at in range(start, min(start + 200, len(lines))):
            if lines[at] == source.text:
                line_of[number], start = at, at + 1
                break
    return line_of


def candidates(ptx: str, executed: Sequence[Executed], threads: int, shared: int) -> list[int]:
    """Instructions to plant a fault in: they ran with an active lane, and their results are read later."""
    program = Program(parse(ptx), threads, shared)
    dead = program.dead_results()
    lines = lines_of(ptx, program.entry)
    return [at for at, seen in enumerate(executed) if seen.active and at not in dead and at in lines]


def draw(ptx: str, places: Sequence[int], rng: random.Random) -> Mutant:
    """One mutant of a drawn kind at an instruction drawn among those of `places` that have this kind."""
    entry = parse(ptx)
    lines = lines_of(ptx, entry)
    while True:
        kind = rng.choice(KINDS)
        for at in rng.sample(places, len(places)):
            source = entry.instructions[at]
            after = mutate(source.text, kind, entry, rng)
            if after is not None and after != source.text:
                return Mutant(at, kind, source.place, source.text, after, _replaced(ptx, lines[at], after))


def drop(ptx: str, pattern: str) -> list[Mutant]:
    """For each instruction that the pattern matches, a mutant without it."""
    entry = parse(ptx)
    lines = lines_of(ptx, entry)
    return [
        Mutant(at, "dropped", source.place, source.text, "", _replaced(ptx, lines[at], ""))
        for at, source in enumerate(entry.instructions)
        if re.match(pattern, source.text)
    ]


def _replaced(ptx: str, at: int, statement: str) -> str:
    lines = ptx.splitlines()
    return "\n".join([*lines[:at], f"\t{statement};" if statement else "", *lines[at + 1 :]])


def mutate(text: str, kind: str, entry: Entry, rng: random.Random) -> str | None:
    """The instruction with one fault; None where this kind does not apply. "" if it is dropped."""
    guard, opcode, operands = _parts(text)
    if kind == "dropped":
        return None if opcode.split(".")[0] in _CONTROL else ""
    if kind == "predicate":
        if not guard:
            return None
        return f"{_negated(guard)}{opcode} {operands}"
    if kind == "opcode":
        return _other_opcode(guard, opcode, operands, rng)
    if kind == "constant":
        return _other_number(guard, opcode, operands, r"(?<=, )-?\d+$|(?<=, )-?\d+(?=,)", rng)
    if kind == "offset":
        inside = r"(?<=\+ )-?\d+(?=\s*\])|(?<=\+)\d+(?=\])"
        return _other_number(guard, opcode, operands, inside, rng) if "[" in operands else None
    return _other_register(guard, opcode, operands, entry, rng)


def _statement(line: str) -> str:
    return " ".join(line.split("//")[0].split(";")[0].split())


def _parts(text: str) -> tuple[str, str, str]:
    match = re.match(r"(@!?[\w%$]+\s+)?(\S+)\s*(.*)", text)
    assert match is not None
    return match[1] or "", match[2], match[3]


def _negated(guard: str) -> str:
    return guard.replace("@!", "@") if guard.startswith("@!") else guard.replace("@", "@!")


def _other_opcode(guard: str, opcode: str, operands: str, rng: random.Random) -> str | None:
    parts = opcode.split(".")
    if parts[0] == "setp" and parts[1] in _COMPARISONS:
        parts[1] = rng.choice(_COMPARISONS[parts[1]])
    elif parts[0] in _OPCODES and not {"wide", "hi"} & set(parts):
        new = rng.choice(_OPCODES[parts[0]])
        if parts[0] == "mul" and "lo" in parts:
            parts.remove("lo")
        if new in ("shr", "shl"):
            parts[-1] = parts[-1].replace("b", "u") if new == "shr" else "b" + parts[-1][1:]
        parts[0] = new
    elif parts[0] == "shfl":
        parts[2] = {"bfly": "idx", "idx": "bfly", "up": "down", "down": "up"}[parts[2]]
    else:
        return None
    return f"{guard}{'.'.join(parts)} {operands}"


def _other_number(guard: str, opcode: str, operands: str, pattern: str, rng: random.Random) -> str | None:
    if opcode.startswith(("cp.async.wait", "bar", "prmt", "lop3")):
        return None
    if opcode.startswith("shfl") and "[" not in operands:
        pattern = r"(?<=, )\d+(?=, \d+, -1)"  # by how much; not for whom
    matches = list(re.finditer(pattern, operands))
    if not matches:
        return None
    at = rng.choice(matches)
    value = int(at[0])
    new = rng.choice([new for new in (value + 1, value - 1, value * 2, value + 4) if new != value])
    return f"{guard}{opcode} {operands[: at.start()]}{new}{operands[at.end() :]}"


def _other_register(guard: str, opcode: str, operands: str, entry: Entry, rng: random.Random) -> str | None:
    """A source register replaced by its neighbour of the same type."""
    start = 0 if opcode.startswith(("st", "red", "cp")) else operands.find(",") + 1
    if opcode.startswith(("ld.param", "bra", "bar")) or (start == 0 and not opcode.startswith(("st", "red", "cp"))):
        return None
    matches = [match for match in re.finditer(r"%(?:rs|rd|r|p)\d+", operands) if match.start() >= start]
    if not matches:
        return None
    at = rng.choice(matches)
    prefix, number = re.sub(r"\d", "", at[0]), int(re.sub(r"\D", "", at[0]))
    near = [f"{prefix}{number + step}" for step in (1, -1, 2, -2) if f"{prefix}{number + step}" in entry.registers]
    if not near:
        return None
    return f"{guard}{opcode} {operands[: at.start()]}{rng.choice(near)}{operands[at.end() :]}"
