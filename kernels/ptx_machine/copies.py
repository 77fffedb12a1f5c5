"""`cp.async`: copies under way, which arrive at the wait, in the order of the commits, and not before."""

from __future__ import annotations

import numpy as np

from ptx_machine.memory import UNSIGNED
from ptx_machine.requests import Request, grant
from ptx_machine.warps import Copy, Warps


def issue(warps: Warps, copy: Copy) -> None:
    target = grant(warps, Request("shared", copy.pc, copy.to, copy.lanes, copy.nbytes, write=True, copy="issued"))
    if target is None:
        return
    good = np.isin(copy.lanes, target.lanes)
    source_bytes = copy.source_bytes
    reading = good & (source_bytes > 0)
    if reading.any():
        lanes, requested_bytes = copy.lanes[reading], source_bytes[reading]
        source = grant(
            warps, Request("global", copy.pc, copy.of[reading], lanes, copy.nbytes, requested_bytes=requested_bytes)
        )
        granted = np.zeros(warps.lanes, bool)
        if source is not None:
            granted[source.lanes] = True
        source_bytes = np.where(granted[copy.lanes], source_bytes, 0)
    parts = (copy.lanes[good], copy.to[good], copy.of[good], copy.nbytes, source_bytes[good])
    warps.open_copies.append(Copy(copy.pc, *parts))


def commit(warps: Warps) -> None:
    warps.copy_groups.append(warps.open_copies)
    warps.open_copies = []


def wait(warps: Warps, left: int) -> None:
    """All groups but the last `left` have arrived; -1: every copy, those not committed too."""
    if left < 0:
        commit(warps)
    while len(warps.copy_groups) > max(left, 0):
        for copy in warps.copy_groups.pop(0):
            if len(copy.lanes):
                _arrive(warps, copy)


def _arrive(warps: Warps, copy: Copy) -> None:
    values = np.zeros((len(copy.lanes), copy.nbytes), np.uint8)
    for amount in np.unique(copy.source_bytes[copy.source_bytes > 0]).tolist():
        rows = copy.source_bytes == amount
        window = warps.memory.find(int(copy.of[rows][0]))
        assert window is not None
        start = copy.of[rows] - window.base
        values[rows, :amount] = window.buffer.data[start[:, None] + np.arange(amount)]
    request = Request("shared", copy.pc, copy.to, copy.lanes, copy.nbytes, write=True, copy="arrived")
    access = grant(warps, request)
    if access is not None:
        size = max(size for size in UNSIGNED if copy.nbytes % size == 0)
        access.scatter(size, values.view(UNSIGNED[size]))
