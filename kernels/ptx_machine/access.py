"""Loads, stores, asynchronous copies and atomics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ptx_machine import copies
from ptx_machine.decode import Op, Run, Step, instruction
from ptx_machine.numbers import DTYPES, Mask, from_bf16, to_bf16
from ptx_machine.requests import Request, grant
from ptx_machine.warps import Copy, Warps

_SEMANTICS = ("relaxed", "acquire", "release", "acq_rel")


def _space(op: Op) -> str:
    for part in op.parts[1:]:
        if part.split("::")[0] in ("global", "shared", "param", "local", "const"):
            return part.split("::")[0]
    return "generic"


def _addresses(warps: Warps, op: Op, operand: int) -> Callable[[Mask], tuple[np.ndarray, np.ndarray]]:
    """The lanes that take part, of which there is at least one, and their addresses as int64."""
    base, offset = op.address(operand)
    wide = op.entry.registers.get(base, "b32") in ("b64", "u64", "s64")
    view, every = warps.read(base, "s64" if wide else "u32"), np.arange(warps.lanes)

    def addresses(mask: Mask) -> tuple[np.ndarray, np.ndarray]:
        if mask is None:
            return every, view.astype(np.int64) + offset
        return np.flatnonzero(mask), view[mask].astype(np.int64) + offset

    return addresses


@instruction("ld", "ldu")  # 9.7.9.8-10
def load(op: Op) -> Step:
    space = _space(op)
    if space == "param":
        return _load_param(op)
    if space not in ("global", "shared"):
        raise op.unknown()
    size = np.dtype(DTYPES[op.type]).itemsize
    names = op.registers(0)
    strong = op.has("volatile", "relaxed", "acquire")
    semantics = "acquire" if op.has("acquire") else ""

    def bind(warps: Warps) -> Run:
        addresses = _addresses(warps, op, 1)
        registers = [warps.write(name, op.type) if name != "_" else None for name in names]
        count = len(names)

        def run(mask: Mask) -> None:
            lanes, where = addresses(mask)
            if semantics:
                warps.synchronise(where, op.has("cta"), semantics)
            access = grant(warps, Request(space, op.at, where, lanes, size * count, strong=strong))
            if access is None:
                return
            values = access.gather(size, count)
            whole = len(access.lanes) == warps.lanes
            for k, register in enumerate(registers):
                if register is None:
                    continue
                value: np.ndarray = values[:, k].view(DTYPES[op.type])
                if whole:
                    register[...] = value
                else:
                    register[access.lanes] = value

        return run

    return Step(bind)


def _load_param(op: Op) -> Step:
    name, offset = op.address(1)
    start = next(at for _, param, at in op.entry.params if param == name) + offset
    dtype = np.dtype(DTYPES[op.type])
    names = op.registers(0)

    def bind(warps: Warps) -> Run:
        registers = [warps.write(one, op.type) for one in names]

        def run(mask: Mask) -> None:
            for k, register in enumerate(registers):
                at = start + k * dtype.itemsize
                value = np.frombuffer(warps.parameters, dtype, 1, at)[0]
                register[slice(None) if mask is None else mask] = value

        return run

    return Step(bind)


@instruction("st")  # 9.7.9.11
def store(op: Op) -> Step:
    space = _space(op)
    if space not in ("global", "shared") or op.has("async"):
        raise op.unknown()
    size = np.dtype(DTYPES[op.type]).itemsize
    names = op.registers(1)
    kind = f"b{8 * size}"
    semantics = "release" if op.has("release") else ""

    def bind(warps: Warps) -> Run:
        addresses = _addresses(warps, op, 0)
        registers = [warps.read(name, kind) for name in names]

        def run(mask: Mask) -> None:
            lanes, where = addresses(mask)
            values = np.stack(registers, 1) if mask is None else np.stack([x[lanes] for x in registers], 1)
            access = grant(warps, Request(space, op.at, where, lanes, size * len(names), write=True, values=values))
            if access is not None:
                if len(access.lanes) != len(lanes):
                    values = values[np.isin(lanes, access.lanes)]
                access.scatter(size, values)
                repeated = access.pattern is not None and access.pattern.duplicates
                if repeated and not np.array_equal(access.gather(size, len(names)), values):
                    warps.find(
                        "lane conflict", op.at, "lanes of a warp store different bits to one place", access.lanes
                    )
            if semantics:
                warps.synchronise(where, op.has("cta"), semantics)

        return run

    return Step(bind)


@instruction("cp")  # 9.7.9.25.3: cp.async, its groups and waits
def copy(op: Op) -> Step:
    if op.parts[1] != "async" or op.has("bulk", "mbarrier"):
        raise op.unknown()
    if op.has("commit_group"):
        return Step(lambda warps: lambda mask: copies.commit(warps))
    if op.has("wait_group", "wait_all"):
        left = int(op.operands[0], 0) if op.has("wait_group") else -1
        return Step(lambda warps: lambda mask: copies.wait(warps, left))
    nbytes = int(op.operands[2], 0)
    rest = [text for text in op.operands[3:] if not text.startswith("%rd")]  # a %rd is a cache policy

    def bind(warps: Warps) -> Run:
        to, of = _addresses(warps, op, 0), _addresses(warps, op, 1)
        size = warps.read(rest[0], "u32") if rest else None

        def run(mask: Mask) -> None:
            (lanes, target), (_, source) = to(mask), of(mask)
            source_bytes = np.full(len(lanes), nbytes)
            if size is not None:
                source_bytes = np.minimum(size[lanes], nbytes).astype(np.int64)
            copies.issue(warps, Copy(op.at, lanes, target, source, nbytes, source_bytes))

        return run

    return Step(bind)


@instruction("atom", "red")  # 9.7.13.7-8
def atomic(op: Op) -> Step:
    space = _space(op)
    if space == "generic" or op.has("v2", "v4", "v8"):
        raise op.unknown()
    returns = op.name == "atom"
    first = 1 if returns else 0
    action = next(p for p in op.parts if p in ("add", "min", "max", "exch", "cas", "and", "or", "xor"))
    kind = op.type
    size = np.dtype(DTYPES[kind]).itemsize
    semantics = next((part for part in op.parts if part in _SEMANTICS), "relaxed")
    combine = _combine(op, action, kind)

    def bind(warps: Warps) -> Run:
        addresses = _addresses(warps, op, first)
        operands = [
            warps.read(name, kind) for name in op.operands[first + 1 : first + 1 + (2 if action == "cas" else 1)]
        ]
        out = warps.write(op.operands[0], kind) if returns and op.operands[0] != "_" else None

        def run(mask: Mask) -> None:
            lanes, where = addresses(mask)
            access = grant(warps, Request(space, op.at, where, lanes, size, write=True, atomic=True))
            if access is None:
                return
            if semantics != "relaxed":
                warps.synchronise(where, op.has("cta"), semantics)
            words: np.ndarray = access.buffer.typed(size).view(DTYPES[kind])
            with np.errstate(all="ignore"):
                for lane, at in zip(access.lanes.tolist(), (access.offsets // size).tolist(), strict=True):
                    old = words[at]
                    words[at] = combine(old, *(operand[lane] for operand in operands))
                    if out is not None:
                        out[lane] = old

        return run

    return Step(bind, control="yield")


def _combine(op: Op, action: str, kind: str) -> Callable[..., np.generic]:
    if kind.endswith("x2"):
        raise op.unknown()
    if kind == "bf16":
        if action != "add":
            raise op.unknown()

        def add_bf16(old: np.generic, new: np.generic) -> np.generic:
            pair = np.array([old, new], np.uint16)
            return to_bf16(from_bf16(pair).astype(np.float64).sum(keepdims=True))[0]

        return add_bf16
    table: dict[str, Callable[..., np.generic]] = {
        "add": lambda old, new: old + new,
        "min": min, "max": max,
        "exch": lambda old, new: new,
        "cas": lambda old, expected, new: new if old == expected else old,
        "and": lambda old, new: old & new, "or": lambda old, new: old | new, "xor": lambda old, new: old ^ new,
    }  # fmt: skip
    return table[action]
