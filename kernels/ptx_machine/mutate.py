"""Faults of one instruction each, planted in PTX: a measure of what the checks and the tests around them would miss."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from ptx_machine.parse import Entry, parse

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
_KEPT = ("ret", "exit", "bra")  # to drop one of these makes a program without an end, which is too easily found


@dataclass(frozen=True)
class Mutant:
    kind: str
    place: str
    before: str
    after: str
    ptx: str


def executed_lines(ptx: str, executed: set[str]) -> list[int]:
    """Lines of the text whose instruction ran (by `LaunchCounts.by_instruction`)."""
    return [i for i, line in enumerate(ptx.splitlines()) if _statement(line) in executed]


def draw(ptx: str, executed: set[str], rng: random.Random) -> Mutant:
    """One mutant of a drawn kind at a drawn line among those that ran."""
    lines, entry = ptx.splitlines(), parse(ptx)
    candidates = executed_lines(ptx, executed)
    places = {source.text: source.place for source in entry.instructions}
    while True:
        kind, at = rng.choice(KINDS), rng.choice(candidates)
        before = _statement(lines[at])
        after = mutate(before, kind, entry, rng)
        if after is not None and after != before:
            changed = [*lines[:at], f"\t{after};" if after else "", *lines[at + 1 :]]
            return Mutant(kind, places.get(before, ""), before, after, "\n".join(changed))


def drop(ptx: str, pattern: str) -> list[Mutant]:
    """One mutant for each instruction that the pattern matches: left out."""
    lines, entry = ptx.splitlines(), parse(ptx)
    places = {source.text: source.place for source in entry.instructions}
    found = []
    for at, line in enumerate(lines):
        if re.match(pattern, _statement(line)):
            text = "\n".join([*lines[:at], *lines[at + 1 :]])
            found.append(Mutant("dropped", places.get(_statement(line), ""), _statement(line), "", text))
    return found


def mutate(text: str, kind: str, entry: Entry, rng: random.Random) -> str | None:
    """The instruction with one fault; None where this kind does not apply. "" if it is dropped."""
    guard, opcode, operands = _parts(text)
    if kind == "dropped":
        return None if opcode.split(".")[0] in _KEPT else ""
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
    found = list(re.finditer(pattern, operands))
    if not found:
        return None
    at = rng.choice(found)
    value = int(at[0])
    new = rng.choice([new for new in (value + 1, value - 1, value * 2, value + 4) if new != value])
    return f"{guard}{opcode} {operands[: at.start()]}{new}{operands[at.end() :]}"


def _other_register(guard: str, opcode: str, operands: str, entry: Entry, rng: random.Random) -> str | None:
    """A source register replaced by its neighbour of the same type."""
    start = 0 if opcode.startswith(("st", "red", "cp")) else operands.find(",") + 1
    if opcode.startswith(("ld.param", "bra", "bar")) or (start == 0 and not opcode.startswith(("st", "red", "cp"))):
        return None
    found = [match for match in re.finditer(r"%(?:rs|rd|r|p)\d+", operands) if match.start() >= start]
    if not found:
        return None
    at = rng.choice(found)
    prefix, number = re.sub(r"\d", "", at[0]), int(re.sub(r"\D", "", at[0]))
    near = [f"{prefix}{number + step}" for step in (1, -1, 2, -2) if f"{prefix}{number + step}" in entry.registers]
    if not near:
        return None
    return f"{guard}{opcode} {operands[: at.start()]}{rng.choice(near)}{operands[at.end() :]}"
