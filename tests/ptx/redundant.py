"""Barriers that order nothing: proved from the text, before anything is planted.

A barrier puts in order what lies between the barriers before it and those behind it. It orders nothing if among these
accesses no two conflict: none of them writes, or they belong to different arguments, or their addresses hang on the
thread's number alone and no two warps touch the same bytes. A wait for asynchronous copies counts as a write of all
shared memory: what was copied is there from then on.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np

from ptx_machine import requests
from ptx_machine.parse import Instruction
from ptx_machine.program import Program

_PURE = ("mov", "add", "sub", "mul", "mad", "shl", "shr", "and", "or", "xor", "not", "neg", "min", "max", "lop3", "bfe",
         "bfi", "shf", "prmt", "selp", "setp", "cvt", "cvta")  # fmt: skip
_OF_THE_THREAD = ("%tid.x", "%tid.y", "%tid.z", "%laneid", "%warpid")
Footprints = dict[tuple[int, int], set[int]]  # instruction and warp -> bytes of shared memory


@contextmanager
def watched(kernel: str) -> Iterator[Footprints]:
    """Records which bytes of shared memory each instruction touches in each warp."""
    seen_footprints: Footprints = defaultdict(set)
    look = requests._shared

    def noted(warps, request, pattern):  # type: ignore[no-untyped-def]
        if warps.entry.name == kernel:
            touched = (request.addresses[:, None] + np.arange(request.nbytes)).reshape(-1)
            seen_footprints[request.pc, int(warps.warp[0])].update(touched.tolist())
        return look(warps, request, pattern)

    with mock.patch.object(requests, "_shared", noted):
        yield seen_footprints


def why_redundant(program: Program, at: int, footprints: Callable[[], Footprints]) -> str:
    """Why the barrier at `at` is redundant, or ""."""
    if any(
        step.control == "bar" and program.entry.instructions[i].operands != ("0",)
        for i, step in enumerate(program.steps)
    ):
        return ""
    before, after = _around(program, at)
    pairs = [
        (i, j)
        for i in before
        for j in after
        for space, writes, argument in _touches(program, i)
        for other_space, other_writes, other_argument in _touches(program, j)
        if space == other_space
        and (writes or other_writes)
        and (space == "shared" or argument & other_argument or not (argument and other_argument))
    ]
    if not pairs:
        return "no two accesses between it and the barriers around it conflict"
    alone = _of_the_thread_alone(program)
    if not all(_touches(program, at)[0][0] == "shared" and _plain(program, at, alone) for pair in pairs for at in pair):
        return ""
    seen = footprints()
    warps = {warp for _, warp in seen}
    if any(seen[i, u] & seen[j, v] for i, j in pairs for u in warps for v in warps if u != v):
        return ""
    return "addresses around it hang on the thread alone, and no two warps touch the same bytes"


def _around(program: Program, at: int) -> tuple[set[int], set[int]]:
    """Accesses between the barrier and the barriers before and after it."""
    following = {i: program.successors(i) for i in range(len(program.steps))}
    preceding: dict[int, list[int]] = defaultdict(list)
    for i, targets in following.items():
        for j in targets:
            preceding[j].append(i)

    def reached(edges: dict[int, list[int]]) -> set[int]:
        seen: set[int] = set()
        work = list(edges.get(at, ()))
        while work:
            i = work.pop()
            if i not in seen and program.steps[i].control != "bar":
                seen.add(i)
                work.extend(edges.get(i, ()))
        return {i for i in seen if _touches(program, i)}

    return reached(preceding), reached(following)


def _touches(program: Program, at: int) -> list[tuple[str, bool, set[int]]]:
    """(address space, whether it writes, arguments that its address may derive from) of an instruction."""
    source: Instruction = program.entry.instructions[at]
    parts = {part.split("::")[0] for part in source.parts[1:]}
    if source.name in ("ldmatrix", "stmatrix"):
        return [("shared", source.name == "stmatrix", set())]
    if source.name == "cp" and parts & {"wait_group", "wait_all"}:
        return [("shared", True, set())]
    if source.name == "cp" and "commit_group" not in parts:
        return [("shared", True, set()), ("global", False, program.arguments_of(at))]
    if source.name in ("ld", "ldu", "st", "atom", "red"):
        spaces = parts & {"shared", "global"}
        return [(space, source.name not in ("ld", "ldu"), program.arguments_of(at)) for space in spaces]
    return []


def _of_the_thread_alone(program: Program) -> set[str]:
    """Registers with one definition, computed from the thread's number and constants."""
    defined = Counter(name for _, writes in program.registers for name in writes)
    alone: set[str] = set(_OF_THE_THREAD)
    while True:
        more = {
            name
            for source, (reads, writes) in zip(program.entry.instructions, program.registers, strict=True)
            if source.name in _PURE and alone.issuperset(reads)
            for name in writes
            if defined[name] == 1 and name not in alone
        }
        if not more:
            return alone
        alone |= more


def _plain(program: Program, at: int, alone: set[str]) -> bool:
    """Whether address and predicate of a load or store depend only on the thread."""
    source = program.entry.instructions[at]
    if source.name not in ("ld", "st", "ldmatrix", "stmatrix"):
        return False
    where = next(operand for operand in source.operands if operand.startswith("["))
    names = re.findall(r"%[\w$.]+", where)
    return bool(names) and alone.issuperset(names) and (source.guard is None or source.guard[0] in alone)
