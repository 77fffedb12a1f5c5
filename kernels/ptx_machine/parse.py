"""PTX text -> an `Entry`: parameters, registers, instructions with their places in the source. No meaning yet."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePath

SPECIAL = {f"%{name}.{axis}": "u32" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"}
SPECIAL |= {"%laneid": "u32", "%warpid": "u32", "%smid": "u32", "%clock": "u32", "%clock64": "u64"}
SPECIAL |= {"%globaltimer": "u64"}

_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)(?:.*?inlined_at\s+(\d+)\s+(\d+)\s+(\d+))?")
_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"(?:\s+"([^"]*)")?', re.M)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)", re.S)
_PARAM = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)[^,]*?([\w$]+)(?:\[(\d+)\])?\s*(?:,|$)", re.S)
_LABEL = re.compile(r"([\w$]+):(?!:)")
_GUARD = re.compile(r"@(!?)([\w%$]+)\s+(.*)", re.S)
_SHARED = re.compile(r"\.shared\s+(?:\.align\s+\d+\s+)?\.b8\s+([\w$]+)\[(\d*)\]")


class MachineError(Exception):
    """The machine cannot run this: an unknown instruction, or an unsupported launch."""


@dataclass(frozen=True)
class Instruction:
    text: str
    parts: tuple[str, ...]  # the opcode, split at its dots
    operands: tuple[str, ...]
    guard: tuple[str, bool] | None  # predicate register, negated
    place: str  # file:line of the kernel's source, "" where the PTX does not say

    @property
    def name(self) -> str:
        return self.parts[0]


@dataclass
class Entry:
    name: str
    params: list[tuple[str, str, int]]  # type, name, bytes in front of it
    registers: dict[str, str]
    instructions: list[Instruction]
    labels: dict[str, int]
    shared: dict[str, int] = field(default_factory=dict)  # name -> offset in shared memory
    pointers: frozenset[int] = frozenset()  # numbers of the parameters that are declared as pointers


def parse(ptx: str) -> Entry:
    """The one `.entry` of a module that Triton compiled."""
    files = {int(m[1]): PurePath(m[3] or m[2]).name for m in _FILE.finditer(ptx)}
    header = _ENTRY.search(ptx)
    if header is None:
        raise MachineError("the PTX has no .entry")
    body = _body(ptx, ptx.index("{", header.end()))
    entry = Entry(header[1], _params(header[2]), dict(SPECIAL), [], {})
    entry.pointers = frozenset(i for i, match in enumerate(_PARAM.finditer(header[2])) if ".ptr" in match[0])
    for match in _SHARED.finditer(ptx[: header.start()] + body):
        if match[2] and int(match[2]) and entry.shared:
            raise MachineError(f"several shared arrays, {match[1]} among them; Triton makes one")
        entry.shared[match[1]] = 0
    places = _Places(files)
    statement = ""
    for line in body.splitlines():
        line = line.split("//")[0].strip()
        if line.startswith(".loc"):
            places.move(line)
            continue
        if not line or line.startswith((".pragma", ".file")):
            continue
        statement += " " + line
        while ";" in statement or _LABEL.match(_open(statement)):
            statement = _take(_open(statement), entry, places)
    return entry


def split_operands(text: str) -> list[str]:
    """Operands, split at the commas outside of {} and []."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(text):
        depth += (character in "{[") - (character in "}]")
        if character == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


class _Places:
    """Follows `.loc`: inlined code is placed where the kernel calls it, since that is the line a reader can mend."""

    def __init__(self, files: dict[int, str]) -> None:
        self.files = files
        self.callers: dict[tuple[int, int, int], tuple[int, int, int]] = {}
        self.current = ""

    def move(self, line: str) -> None:
        match = _LOC.search(line)
        if match is None:
            return
        here = (int(match[1]), int(match[2]), int(match[3]))
        if match[4]:
            self.callers[here] = (int(match[4]), int(match[5]), int(match[6]))
        if here[1] == 0 and self.current:
            return  # line 0: made by the compiler, belongs to what came before
        outer = self.callers.get(here, here) if match[4] else here
        for _ in range(20):
            outer = self.callers.get(outer, outer)
        self.current = f"{self.files.get(outer[0], '?')}:{outer[1]}"


def _body(ptx: str, start: int) -> str:
    depth = 0
    for at in re.finditer(r"[{}]", ptx[start:]):
        depth += 1 if at[0] == "{" else -1
        if depth == 0:
            return ptx[start + 1 : start + at.start()]
    raise MachineError("the .entry has no end")


def _params(text: str) -> list[tuple[str, str, int]]:
    params, offset = [], 0
    for match in _PARAM.finditer(text):
        size = int(match[3]) if match[3] else int(re.sub(r"\D", "", match[1])) // 8
        params.append((match[1], match[2], offset))
        offset += size
    return params


def _open(statement: str) -> str:
    """Braces around inline assembly open no scope that matters here."""
    return statement.lstrip("{} \t\n")


def _take(statement: str, entry: Entry, places: _Places) -> str:
    """Take the first label or statement off, and hand back the rest."""
    label = _LABEL.match(statement)
    if label:
        entry.labels[label[1]] = len(entry.instructions)
        return statement[label.end() :].strip()
    text, _, rest = statement.partition(";")
    text = " ".join(text.split())
    if text.startswith(".reg"):
        _, kind, names = text.split(None, 2)
        for name in split_operands(names):
            many = re.match(r"(.*)<(\d+)>", name)
            new = [many[1] + str(i) for i in range(int(many[2]))] if many else [name]
            entry.registers.update(dict.fromkeys(new, kind[1:]))
    elif text and not text.startswith("."):
        guarded = _GUARD.match(text)
        guard = (guarded[2], guarded[1] == "!") if guarded else None
        opcode, _, operands = (guarded[3] if guarded else text).partition(" ")
        entry.instructions.append(
            Instruction(text, tuple(opcode.split(".")), tuple(split_operands(operands)), guard, places.current)
        )
    return rest.strip()
