"""`cp.async`: what is under way, and when it arrives."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ptx_machine.decode import Mask
from ptx_machine.memory import UNSIGNED
from ptx_machine.requests import Request, grant

if TYPE_CHECKING:
    from ptx_machine.warps import Warps


class Copy(NamedTuple):
    """One instruction's copies: `nbytes` per lane, of which `kept` are read and the rest are zeros."""

    pc: int
    lanes: np.ndarray
    to: np.ndarray
    of: np.ndarray
    nbytes: int
    kept: np.ndarray


class Copies:
    """Data arrive at the wait, in the order of the commits, and not before."""

    def __init__(self, warps: Warps) -> None:
        self.warps = warps
        self.reset()

    def reset(self) -> None:
        self.open: list[Copy] = []
        self.groups: list[list[Copy]] = []

    def issue(self, copy: Copy) -> None:
        target = grant(
            self.warps, Request("shared", copy.pc, copy.to, copy.lanes, copy.nbytes, write=True, copy="issued")
        )
        if target is None:
            return
        good = np.isin(copy.lanes, target.lanes)
        kept = copy.kept
        reading = good & (kept > 0)
        if reading.any():
            request = Request(
                "global", copy.pc, copy.of[reading], copy.lanes[reading], copy.nbytes, asked=copy.kept[reading]
            )
            source = grant(self.warps, request)
            fine = np.zeros(self.warps.lanes, bool)
            if source is not None:
                fine[source.lanes] = True
            kept = np.where(fine[copy.lanes], kept, 0)
        self.open.append(Copy(copy.pc, copy.lanes[good], copy.to[good], copy.of[good], copy.nbytes, kept[good]))

    def commit(self, mask: Mask) -> None:
        self.groups.append(self.open)
        self.open = []

    def wait(self, left: int) -> None:
        """All groups but the last `left` have arrived; -1: everything, what is not committed too."""
        if left < 0:
            self.commit(None)
        while len(self.groups) > max(left, 0):
            for copy in self.groups.pop(0):
                if len(copy.lanes):
                    self._arrive(copy)

    def _arrive(self, copy: Copy) -> None:
        values = np.zeros((len(copy.lanes), copy.nbytes), np.uint8)
        for amount in np.unique(copy.kept[copy.kept > 0]).tolist():
            rows = copy.kept == amount
            window = self.warps.memory.find(int(copy.of[rows][0]))
            assert window is not None
            start = copy.of[rows] - window.base
            values[rows, :amount] = window.buffer.data[start[:, None] + np.arange(amount)]
        request = Request("shared", copy.pc, copy.to, copy.lanes, copy.nbytes, write=True, copy="arrived")
        access = grant(self.warps, request)
        if access is not None:
            size = max(size for size in UNSIGNED if copy.nbytes % size == 0)
            access.scatter(size, values.view(UNSIGNED[size]))
