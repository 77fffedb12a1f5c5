"""Instructions -> steps. The files that README.md lists say what an instruction does."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ptx_machine.numbers import Mask, flushing, from_bf16, is_float, to_bf16
from ptx_machine.parse import Entry, Instruction, MachineError
from ptx_machine.warps import Warps

Run = Callable[[Mask], None]
Bind = Callable[[Warps], Run]
Compute = Callable[..., np.ndarray]

_TABLE: dict[str, Callable[[Op], Step]] = {}
_NO_RESULT = ("st", "red", "bra", "ret", "exit", "bar", "barrier", "cp", "fence", "membar", "prefetch", "nanosleep",
              "griddepcontrol", "trap", "stmatrix", "discard", "prefetchu", "applypriority")  # fmt: skip


@dataclass
class Step:
    """One instruction, ready to be bound to the registers of some warps."""

    bind: Bind
    fast: Callable[[Warps], Callable[[], object]] | None = None  # for all lanes, where that can be said shorter
    control: str = ""  # "bra", "ret", "bar": handled by whoever steps; "yield": a good place to let others run
    target: str = ""  # of a branch
    barrier: tuple[int, int] = (0, 0)  # name and threads (0: all of the block)
    waits: bool = False  # for the other lanes of its warp


def instruction(*names: str) -> Callable[[Callable[[Op], Step]], Callable[[Op], Step]]:
    """Registers what opcodes beginning with one of `names` do."""

    def register(define: Callable[[Op], Step]) -> Callable[[Op], Step]:
        _TABLE.update(dict.fromkeys(names, define))
        return define

    return register


def decode(entry: Entry, at: int) -> Step:
    op = Op(entry, at)
    define = _TABLE.get(op.name)
    if define is None:
        raise op.unknown()
    try:
        return define(op)
    except (KeyError, IndexError, ValueError) as error:
        raise op.unknown() from error


class Op:
    """An instruction while it is being decoded."""

    def __init__(self, entry: Entry, at: int) -> None:
        self.entry, self.at = entry, at
        self.source: Instruction = entry.instructions[at]
        self.parts, self.operands = self.source.parts, self.source.operands
        self.name, self.type = self.parts[0], self.parts[-1]

    def has(self, *modifiers: str) -> bool:
        return any(modifier in self.parts[1:] for modifier in modifiers)

    def unknown(self) -> MachineError:
        place = f" at {self.source.place}" if self.source.place else ""
        return MachineError(
            f"unknown instruction {'.'.join(self.parts)} in {self.entry.name}{place}: {self.source.text}"
        )

    def registers(self, operand: int) -> list[str]:
        """A vector operand's registers, or the one."""
        return [name.strip() for name in self.operands[operand].strip("{} ").split(",")]

    def address(self, operand: int) -> tuple[str, int]:
        """Register (or symbol) and offset of [register + offset]."""
        match = re.fullmatch(r"\[\s*([^\s+\]]+)\s*(?:\+\s*(-?\w+))?\s*\]", self.operands[operand])
        if match is None:
            raise self.unknown()
        return match[1], int(match[2] or "0", 0)

    def compute(
        self,
        fn: Compute,
        sources: int | Sequence[tuple[str, str]],
        type: str = "",
        result: str = "",
    ) -> Step:
        """result register = fn(sources), lane by lane. `sources`: how many operands, or (operand, type) pairs."""
        kind = type or self.type
        result = result or kind
        pairs = [(x, kind) for x in self.operands[1 : 1 + sources]] if isinstance(sources, int) else list(sources)
        if is_float(kind) and self.has("rz", "rm", "rp"):
            raise self.unknown()
        narrow = [i for i, (_, k) in enumerate(pairs) if k.startswith("bf16")]
        if narrow or result.startswith("bf16"):
            fn = _through_float32(fn, narrow, result.startswith("bf16"))
        if self.has("ftz"):
            fn = flushing(fn)
        if self.has("sat") and is_float(kind):
            fn = _saturating(fn)
        return assign(self.operands[0], result, fn, pairs)


def assign(target: str, kind: str, fn: Compute, sources: Sequence[tuple[str, str]]) -> Step:
    """target = fn(sources). A numpy ufunc writes straight into the register."""

    def bind(warps: Warps) -> Run:
        arrays = [warps.read(name, source_kind) for name, source_kind in sources]
        out = warps.write(target, kind)
        repeat = len(out) // warps.lanes

        def run(mask: Mask) -> None:
            if mask is None:
                out[...] = fn(*arrays)
            else:
                np.copyto(out, fn(*arrays), where=mask if repeat == 1 else np.repeat(mask, repeat), casting="unsafe")

        return run

    def fast(warps: Warps) -> Callable[[], object]:
        arrays = [warps.read(name, source_kind) for name, source_kind in sources]
        out = warps.write(target, kind)
        same = {x.dtype for x in (*arrays, out) if x.dtype != np.bool_ or x is not out}
        if isinstance(fn, np.ufunc) and len(same) == 1:
            return partial(fn, *arrays, out=out)

        def run() -> None:
            out[...] = fn(*arrays)

        return run

    return Step(bind, fast)


def _through_float32(fn: Compute, narrow: list[int], encode: bool) -> Compute:
    def computed(*arrays: np.ndarray) -> np.ndarray:
        value = fn(*(from_bf16(x) if i in narrow else x for i, x in enumerate(arrays)))
        return to_bf16(value) if encode else value

    return computed


def _saturating(fn: Compute) -> Compute:
    def saturated(*arrays: np.ndarray) -> np.ndarray:
        value = fn(*arrays)
        return np.where(np.isnan(value), 0, np.clip(value, 0, 1)).astype(value.dtype)

    return saturated


_NAME = re.compile(r"%[\w$.]+|[A-Za-z_$][\w$]*")


def reads_and_writes(entry: Entry, source: Instruction) -> tuple[list[str], list[str]]:
    """Registers an instruction reads and writes, by where PTX puts its results."""
    has_result = source.name not in _NO_RESULT
    written = source.operands[0] if has_result and source.operands else ""
    read = source.operands[1:] if has_result else source.operands
    writes = [name for name in _NAME.findall(written) if name in entry.registers]
    reads = [name for text in read for name in _NAME.findall(text) if name in entry.registers]
    if source.guard:
        reads.append(source.guard[0])
    return reads, writes
