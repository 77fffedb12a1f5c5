"""Happens-before between warps, by vector clocks: barriers and ordered atomics order, nothing else does.

A warp's clock is its entry in its own vector; an access is an epoch (warp, clock); an epoch is ordered before a warp
if the warp's vector has reached that clock. Memory is watched in granules that begin at 16 bytes and are halved
when a narrower access comes, so bytes are the unit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Granules = np.ndarray | slice
Conflict = tuple[int, int, int, str]  # granule, other warp, other instruction, what it did

PLAIN, ATOMIC = 0, 1


class Clocks:
    """Vectors of all warps of a launch, and those that ordered atomics have left at addresses."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.released: dict[tuple[int, int], np.ndarray] = {}

    def fresh(self, warp: int) -> np.ndarray:
        vector = np.zeros(self.total, np.int32)
        vector[warp] = 1
        return vector

    def synchronise(self, vector: np.ndarray, warp: int, address: int, scope: int, semantics: str) -> None:
        """An atomic with ordering. `scope`: -1, or the block if the instruction's scope is a block."""
        left = self.released.get((address, scope))
        if semantics in ("acquire", "acq_rel") and left is not None:
            np.maximum(vector, left, out=vector)
        if semantics in ("release", "acq_rel"):
            self.released[address, scope] = vector.copy() if left is None else np.maximum(left, vector)
            vector[warp] += 1


def join(vectors: list[np.ndarray], warps: list[int]) -> None:
    """A barrier: every warp has seen everything that any of them had seen."""
    together = np.maximum.reduce(vectors)
    for vector, warp in zip(vectors, warps, strict=True):
        vector[:] = together
        vector[warp] += 1


class Shadow:
    """Last write and last reads of each granule. `warps`: those that can touch it, 0 if that is the whole launch."""

    def __init__(self, nbytes: int, warps: int) -> None:
        self.granule = 16
        self.warps = warps
        count = -(-nbytes // 16)
        self.writer = np.zeros(count, np.int32)
        self.wrote = np.zeros(count, np.int32)  # the writer's clock
        self.write_at = np.zeros(count, np.int32)  # the instruction
        self.how = np.zeros(count, np.int8)
        self.read_at = np.zeros(count, np.int32)
        if warps:
            self.reads = np.zeros((count, warps), np.int32)  # clocks
        else:
            self.reader = np.zeros(count, np.int32)
            self.read = np.zeros(count, np.int32)
            self.more = np.zeros(count, bool)  # unordered readers before the last one are in `earlier`
            self.earlier: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        self.atomics: dict[int, dict[int, tuple[int, int]]] = {}  # granule -> warp -> clock, instruction
        self.strong_reads: dict[int, dict[int, tuple[int, int]]] = {}
        self.equal: dict[int, list[tuple[int, int]]] = {}  # granule -> earlier unordered writers of the same bits

    def refine(self, nbytes: int) -> None:
        """Make granules no larger than an access."""
        while self.granule > nbytes:
            self.granule //= 2
            names = ["writer", "wrote", "write_at", "how", "read_at"]
            names += ["reads"] if self.warps else ["reader", "read", "more"]
            for name in names:
                setattr(self, name, np.repeat(getattr(self, name), 2, axis=0))
            if not self.warps:
                self.earlier = [(np.repeat(at * 2, 2) + np.tile([0, 1], len(at)), *(np.repeat(x, 2) for x in rest))
                                for at, *rest in self.earlier]  # fmt: skip
            self.atomics = {2 * at + half: dict(seen) for at, seen in self.atomics.items() for half in (0, 1)}
            self.strong_reads = {2 * at + half: dict(seen) for at, seen in self.strong_reads.items() for half in (0, 1)}
            self.equal = {2 * at + half: list(seen) for at, seen in self.equal.items() for half in (0, 1)}

    # The three below return conflicts with accesses that are not ordered before the warp's own, then note the access.

    def on_read(self, at: Granules, vector: np.ndarray, warp: int, lane: int, pc: int, strong: bool) -> list[Conflict]:
        """`lane`: the warp's column where `warps` is not 0. `strong`: volatile or relaxed, may meet atomics."""
        conflicts: list[Conflict] = []
        writer, wrote = self.writer[at], self.wrote[at]
        late = vector[writer] < wrote
        if late.any():
            conflicts = self._writes(at, late if not strong else late & (self.how[at] != ATOMIC))
            conflicts = [c for c in conflicts if not any(vector[w] >= clock for w, clock in self.equal.get(c[0], ()))]
        if strong:
            for g in _numbers(at):
                self.strong_reads.setdefault(int(g), {})[warp] = (int(vector[warp]), pc)
            return conflicts
        if self.atomics:
            conflicts += _unordered(self.atomics, "atomic", at, vector, warp)
        clock = vector[warp]
        if self.warps:
            self.reads[at, lane] = clock
        else:
            reader, read = self.reader[at], self.read[at]
            unordered = (vector[reader] < read) & (reader != warp)
            if unordered.any():
                where = _numbers(at)[unordered]
                self.earlier.append((where, reader[unordered], read[unordered], self.read_at[where]))
                self.more[where] = True
            self.reader[at] = warp
            self.read[at] = clock
        self.read_at[at] = pc
        return conflicts

    def on_write(
        self,
        at: Granules,
        vector: np.ndarray,
        warp: int,
        block: range,
        pc: int,
        changed: Callable[[], np.ndarray] | None,
        atomic: bool = False,
    ) -> list[Conflict]:
        """`block`: the warps of the warp's block. `changed`: granules whose bytes the write changes."""
        conflicts: list[Conflict] = []
        late = vector[self.writer[at]] < self.wrote[at]
        if atomic:
            late &= self.how[at] != ATOMIC
        if late.any():
            conflicts = self._writes(at, late)
        if self.atomics and not atomic:
            conflicts += _unordered(self.atomics, "atomic", at, vector, warp)
        if self.strong_reads and not atomic:
            conflicts += _unordered(self.strong_reads, "read", at, vector, warp)
        if self.warps:
            unseen = self.reads[at] > vector[block.start : block.stop]
            if unseen.any():
                rows, lanes = np.nonzero(unseen)
                numbers = _numbers(at)
                for row, lane in zip(rows[:4], lanes[:4], strict=True):
                    g = int(numbers[row])
                    conflicts.append((g, block.start + int(lane), int(self.read_at[g]), "read"))
        else:
            reader = self.reader[at]
            unseen = (vector[reader] < self.read[at]) & (reader != warp)
            if unseen.any():
                for g in _numbers(at)[unseen][:4]:
                    conflicts.append((int(g), int(self.reader[g]), int(self.read_at[g]), "read"))
            if self.more[at].any():
                conflicts += self._earlier_reads(_numbers(at), vector, warp)
        if conflicts and changed is not None:
            # Replicated layouts make one instruction of a block's warps write the same bits to one place: no harm.
            harmful = set(_numbers(at)[changed()].tolist())
            harmless = [
                c for c in conflicts if c[0] not in harmful and c[1] in block and c[2] == pc and c[3] == "write"
            ]
            for g, *_ in harmless:
                self.equal.setdefault(g, []).append((int(self.writer[g]), int(self.wrote[g])))
            conflicts = [conflict for conflict in conflicts if conflict not in harmless]
        elif self.equal:
            for g in self.equal.keys() & set(_numbers(at).tolist()):
                del self.equal[g]
        self.writer[at] = warp
        self.wrote[at] = vector[warp]
        self.write_at[at] = pc
        self.how[at] = ATOMIC if atomic else PLAIN
        if atomic:
            for g in _numbers(at):
                self.atomics.setdefault(int(g), {})[warp] = (int(vector[warp]), pc)
        return conflicts

    def _writes(self, at: Granules, late: np.ndarray) -> list[Conflict]:
        return [
            (int(g), int(self.writer[g]), int(self.write_at[g]), "atomic" if self.how[g] else "write")
            for g in _numbers(at)[late]
        ]

    def _earlier_reads(self, numbers: np.ndarray, vector: np.ndarray, warp: int) -> list[Conflict]:
        conflicts = []
        for where, readers, clocks, places in self.earlier:
            hit = np.isin(where, numbers) & (vector[readers] < clocks) & (readers != warp)
            for k in np.flatnonzero(hit)[:2]:
                conflicts.append((int(where[k]), int(readers[k]), int(places[k]), "read"))
        return conflicts


def _unordered(
    seen: dict[int, dict[int, tuple[int, int]]], what: str, at: Granules, vector: np.ndarray, warp: int
) -> list[Conflict]:
    conflicts = []
    for g in seen.keys() & set(_numbers(at).tolist()):
        for other, (clock, pc) in seen[g].items():
            if other != warp and vector[other] < clock:
                conflicts.append((g, other, pc, what))
    return conflicts


def shift(at: Granules, by: int) -> Granules:
    return slice(at.start + by, at.stop + by) if isinstance(at, slice) else at + by


def _numbers(at: Granules) -> np.ndarray:
    return np.arange(at.start, at.stop) if isinstance(at, slice) else at
