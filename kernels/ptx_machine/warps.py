"""The registers of some warps, and their findings.

This is one warp when a schedule is followed, and the warps of many blocks in lockstep; instructions do not distinguish.
"""

from __future__ import annotations

import re
import struct
from typing import Any, NamedTuple

import numpy as np

from ptx_machine.memory import SHARED_BASE, UNSIGNED, GlobalMemory, Shared
from ptx_machine.numbers import DTYPES, Mask, is_float
from ptx_machine.parse import Entry, MachineError
from ptx_machine.races import Clocks, Conflict
from ptx_machine.report import Finding, LaunchCounts, Report

ALL_LANES = np.arange(32)


class Copy(NamedTuple):
    """The copies of one `cp.async`: `nbytes` a lane, of which `source_bytes` are read and the rest are zeros."""

    pc: int
    lanes: np.ndarray
    to: np.ndarray
    of: np.ndarray
    nbytes: int
    source_bytes: np.ndarray


class Warps:
    """`count` warps side by side, of blocks of `threads` threads. `watched`: registers that may be read unwritten."""

    def __init__(self, entry: Entry, threads: int, watched: frozenset[str], count: int, shared: Shared) -> None:
        self.entry, self.threads, self.watched = entry, threads, watched
        self.count, self.lanes, self.shared = count, 32 * count, shared
        self.block = np.zeros(count, np.int64)  # of each warp
        self.warp = np.zeros(count, np.int64)  # within its block
        self.shared_offset = np.zeros(self.lanes, np.int64)  # of a lane's block, where several share an array
        self.vector = np.zeros(0, np.int32)
        self.number = 0  # of the warp among all of the launch
        self._registers: dict[str, np.ndarray] = {}
        self._constants: dict[tuple[str, str], np.ndarray] = {}
        self.exited = np.zeros(self.lanes, bool)
        self.checking = True  # off while marks are shuffled, not values

    def attach(
        self,
        grid: tuple[int, int, int],
        memory: GlobalMemory,
        parameters: bytes,
        counts: LaunchCounts,
        report: Report,
        clocks: Clocks | None,
    ) -> None:
        """Serve a launch. `clocks` is None where orderings are not watched."""
        self.grid, self.memory, self.parameters = grid, memory, parameters
        self.counts, self.report, self.clocks = counts, report, clocks

    # Registers

    def _base(self, name: str) -> np.ndarray:
        register = self._registers.get(name)
        if register is None:
            dtype = np.dtype(DTYPES[self.entry.registers[name]])
            register = np.zeros(self.lanes, dtype if dtype == np.bool_ else UNSIGNED[dtype.itemsize])
            self._registers[name] = register
        return register

    def read(self, name: str, kind: str) -> np.ndarray:
        """A register as `kind` (its low part if it is wider), or an immediate in every lane."""
        dtype = np.dtype(DTYPES[kind])
        if name in self.entry.registers:
            base = self._base(name)
            if base.dtype == np.bool_ or dtype.itemsize == base.dtype.itemsize or kind.endswith("x2"):
                return base.view(dtype)
            if dtype.itemsize < base.dtype.itemsize:
                return base.view(dtype).reshape(self.lanes, -1)[:, 0]
            raise MachineError(f"{name} is narrower than .{kind}")
        cached = self._constants.get((name, kind))
        if cached is None:
            value = constant(name, "b32" if kind.endswith("16x2") else "b64" if kind == "f32x2" else kind, self.entry)
            cached = np.full(self.lanes, value).view(dtype)
            self._constants[name, kind] = cached
        return cached

    def write(self, name: str, kind: str) -> np.ndarray:
        """A register to put `kind` into; a wider one is extended as the type's sign says."""
        if name == "_":
            return np.zeros(self.lanes * (2 if kind.endswith("x2") else 1), DTYPES[kind])
        base = self._base(name)
        dtype = np.dtype(DTYPES[kind])
        if dtype.itemsize < base.dtype.itemsize and not kind.endswith("x2"):
            return base.view(f"{'i' if dtype.kind == 'i' else 'u'}{base.dtype.itemsize}")
        if dtype.itemsize > base.dtype.itemsize:
            raise MachineError(f"{name} is narrower than .{kind}")
        return base.view(dtype)

    def begin(self, blocks: np.ndarray, warps: np.ndarray) -> None:
        """Reset everything: these warps of these blocks are about to start."""
        for name in self.watched & self._registers.keys():  # others are written before they are read
            register = self._registers[name]
            register.view(np.uint8)[...] = 0 if register.dtype == np.bool_ else 0xFF
        self.block[:], self.warp[:] = blocks, warps
        self.exited[:] = False
        self.open_copies: list[Copy] = []  # not committed
        self.copy_groups: list[list[Copy]] = []
        grid, threads = self.grid, self.threads
        thread = (np.repeat(warps, 32) * 32 + np.tile(ALL_LANES, self.count)).astype(np.uint32)
        block = np.repeat(blocks, 32)
        values: dict[str, np.ndarray | int] = {
            "%tid.x": thread, "%tid.y": 0, "%tid.z": 0, "%ntid.x": threads, "%ntid.y": 1, "%ntid.z": 1,
            "%ctaid.x": block % grid[0], "%ctaid.y": block // grid[0] % grid[1],
            "%ctaid.z": block // (grid[0] * grid[1]),
            "%nctaid.x": grid[0], "%nctaid.y": grid[1], "%nctaid.z": grid[2],
            "%laneid": thread & 31, "%warpid": thread >> 5, "%smid": 0, "%clock": 0, "%clock64": 0, "%globaltimer": 0,
        }  # fmt: skip
        for name, value in values.items():
            self._base(name)[...] = value

    # Findings

    def describe(self, pc: int) -> tuple[str, str]:
        source = self.entry.instructions[pc]
        return source.place, source.text

    def find(
        self, kind: str, pc: int, message: str, lanes: np.ndarray | None = None, other: Conflict | None = None
    ) -> None:
        """`lanes`: those that are at fault, as numbers or as a mask."""
        first = 0
        if lanes is not None and len(lanes):
            first = int(np.argmax(lanes)) if lanes.dtype == np.bool_ else int(lanes[0])
        place, text = self.describe(pc)
        finding = Finding(
            kind, self.entry.name, message, place, text, int(self.block[first // 32]), int(self.warp[first // 32])
        )
        if other is not None:
            per_block = self.threads // 32
            finding.other_place, finding.other_instruction = self.describe(other[2])
            finding.other_block, finding.other_warp = divmod(other[1], per_block)
        self.report.add(finding)

    def require_converged(self, pc: int, mask: Mask, members: np.ndarray | None) -> None:
        """Instructions of whole warps: every lane that is named, and has not exited, must be here."""
        if not self.checking or (members is None and mask is None and not self.exited.any()):
            return
        here = (np.ones(self.lanes, bool) if mask is None else mask).reshape(-1, 32)
        present = here.any(1)
        if members is None:
            active = ~self.exited.reshape(-1, 32)
        else:
            first = np.where(here, members.reshape(-1, 32), 0).max(1).astype(np.int64)
            active = (first[:, None] >> ALL_LANES & 1).astype(bool) & ~self.exited.reshape(-1, 32)
        bad = present & (here != active).any(1)
        if bad.any():
            self.find("divergence", pc, "reached by a part of the lanes that it names", np.repeat(bad, 32))

    def synchronise(self, addresses: np.ndarray, within_block: bool, semantics: str) -> None:
        """An atomic with ordering, whose scope is the block or the GPU."""
        if self.clocks is not None:
            scope = int(self.block[0]) if within_block else -1
            for address in np.unique(addresses).tolist():
                self.clocks.synchronise(self.vector, self.number, address, scope, semantics)


def constant(text: str, kind: str, entry: Entry) -> Any:
    """An immediate operand as a numpy scalar of the type."""
    dtype = np.dtype(DTYPES[kind])
    if text in entry.shared:
        bits = SHARED_BASE + entry.shared[text]
    elif text in ("true", "false"):
        bits = int(text == "true")
    elif text.startswith("%envreg") or text == "_":
        bits = 0
    elif match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", text):
        bits = int(match[1], 16)
        if kind == "f64":
            bits = int.from_bytes(struct.pack("<d", struct.unpack("<f", struct.pack("<I", bits))[0]), "little")
    elif match := re.fullmatch(r"0[dD]([0-9a-fA-F]{16})", text):
        bits = int(match[1], 16)
        if kind == "f32":
            bits = int.from_bytes(np.float32(struct.unpack("<d", struct.pack("<Q", bits))[0]).tobytes(), "little")
    elif re.fullmatch(r"-?\d+\.\d+(e[+-]?\d+)?", text) and is_float(kind):
        return dtype.type(float(text))
    else:
        bits = int(text.rstrip("U"), 0)
    if dtype == np.bool_:
        return np.bool_(bits != 0)
    bits &= (1 << 8 * dtype.itemsize) - 1
    return np.frombuffer(bits.to_bytes(8, "little")[: dtype.itemsize], dtype)[0]
