"""The results of a run: findings, counts, and the error that turns findings into a failed test."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass
class Finding:
    """One fault, with the first accesses that showed it and the number of times it occurred."""

    kind: str
    kernel: str
    message: str
    place: str  # file:line of the kernel
    instruction: str
    block: int
    warp: int
    other_place: str = ""
    other_instruction: str = ""
    other_block: int | None = None
    other_warp: int | None = None
    times: int = 1

    def __str__(self) -> str:
        text = f"{self.kind} in {self.kernel} at {self.place or '?'} (block {self.block}, warp {self.warp}): "
        text += f"{self.message}; {self.instruction!r}"
        if self.other_instruction:
            text += (
                f" against {self.other_instruction!r} at {self.other_place or '?'} "
                f"(block {self.other_block}, warp {self.other_warp})"
            )
        return text + (f" [{self.times} times]" if self.times > 1 else "")


class Executed(NamedTuple):
    """An instruction of the launched kernel."""

    place: str
    text: str
    times: int  # warp instructions
    active: int  # of these with a lane for which the predicate held


@dataclass
class LaunchCounts:
    """Counts of one launch. Divide by `warps` for a mean per warp."""

    kernel: str
    grid: tuple[int, int, int]
    num_warps: int
    warps: int = 0
    instructions: Counter[str] = field(default_factory=Counter)  # class -> executed warp instructions
    by_instruction: list[Executed] = field(default_factory=list)  # in the order of the text, those never reached too
    loop_trips: dict[str, int] = field(default_factory=dict)  # loop "file:line (label)" -> trips, all warps together
    global_requests: Counter[str] = field(default_factory=Counter)  # argument and direction -> requests of a warp
    global_sectors: Counter[str] = field(default_factory=Counter)  # the same -> 32-byte sectors
    global_distinct: Counter[str] = field(default_factory=Counter)  # the same -> sectors, each counted once a launch
    global_bytes: Counter[str] = field(default_factory=Counter)  # the same -> bytes asked for
    shared_requests: int = 0
    shared_conflicts: int = 0  # passes over the banks beyond the least possible
    barriers: int = 0

    @property
    def distinct_bytes(self) -> int:
        """Traffic with memory if the caches held a launch's data: each argument's sectors once read, once written."""
        return 32 * sum(self.global_distinct.values())


class FindingsError(AssertionError):
    """Raised by `Report.raise_if_any`."""


class Report:
    """`findings`: faults. `counts`: one entry a launch."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.counts: list[LaunchCounts] = []
        self._known: dict[tuple[object, ...], Finding] = {}

    def add(self, finding: Finding) -> None:
        first = (finding.kind, finding.kernel, finding.instruction, finding.place)
        key = (*first, finding.other_instruction, finding.other_place)
        known = self._known.get(key)
        if known is not None:
            known.times += 1
            return
        self._known[key] = finding
        self.findings.append(finding)

    def raise_if_any(self) -> None:
        if self.findings:
            lines = "\n".join(f"  {finding}" for finding in self.findings[:20])
            more = f"\n  and {len(self.findings) - 20} more" if len(self.findings) > 20 else ""
            raise FindingsError(f"{len(self.findings)} findings:\n{lines}{more}")
