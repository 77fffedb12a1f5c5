"""Every request to memory is checked, counted, ordered against the others, and then granted here."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ptx_machine.memory import (
    NEVER,
    PENDING,
    SECTOR,
    SHARED_BASE,
    UNSIGNED,
    WINDOW_BITS,
    WRITTEN,
    Buffer,
    Pattern,
    offsets_outside,
    pattern_of,
)
from ptx_machine.parse import MachineError
from ptx_machine.races import Granules, shift
from ptx_machine.warps import Warps


@dataclass(slots=True)
class Request:
    """What some lanes of one instruction ask for: `nbytes` each, at `addresses` (lanes,)."""

    space: str  # global or shared
    pc: int
    addresses: np.ndarray
    lanes: np.ndarray
    nbytes: int
    write: bool = False
    values: np.ndarray | None = None  # (lanes, count), of a store
    strong: bool = False  # volatile, relaxed or acquire
    atomic: bool = False
    copy: str = ""  # cp.async: "issued", or "arrived" when its data come
    requested_bytes: np.ndarray | None = None  # bytes, where cp.async takes fewer

    def without(self, bad: np.ndarray) -> Request:
        """The same without the lanes at fault."""
        good = ~bad
        values, requested_bytes = (None if x is None else x[good] for x in (self.values, self.requested_bytes))
        return replace(
            self, addresses=self.addresses[good], lanes=self.lanes[good], values=values, requested_bytes=requested_bytes
        )


@dataclass(slots=True)
class Access:
    """Bytes that a request may touch, and whose. `offsets`: of each lane's first byte in the buffer."""

    buffer: Buffer
    lanes: np.ndarray
    offsets: np.ndarray
    pattern: Pattern | None  # of the lanes of one warp

    def _elements(self, size: int, count: int) -> np.ndarray | slice:
        if self.pattern is not None and self.pattern.contiguous:
            first = int(self.offsets[0]) // size
            return slice(first, first + len(self.lanes) * count)
        return (self.offsets // size)[:, None] + np.arange(count)

    def gather(self, size: int, count: int) -> np.ndarray:
        """(lanes, count) unsigned numbers of `size` bytes."""
        return self.buffer.typed(size)[self._elements(size, count)].reshape(-1, count)

    def scatter(self, size: int, values: np.ndarray) -> None:
        elements = self._elements(size, values.shape[1])
        self.buffer.typed(size)[elements] = values.reshape(-1) if isinstance(elements, slice) else values


def grant(warps: Warps, request: Request) -> Access | None:
    """Checks a request and counts it. What comes back leaves out lanes at fault; None if nothing is left."""
    while len(request.lanes):
        pattern = pattern_of(request.addresses, request.nbytes) if warps.count == 1 else None
        misaligned = _aligned(warps, request, pattern)
        if misaligned is not None:
            request = request.without(misaligned)
            continue
        outcome = (_shared if request.space == "shared" else _global)(warps, request, pattern)
        if isinstance(outcome, Access):
            if warps.clocks is not None and outcome.buffer.shadow is not None:
                _order(warps, request, outcome)
            if request.space == "shared":
                _state(warps, request, outcome)
            return outcome
        request = request.without(outcome)
    return None


def _aligned(warps: Warps, request: Request, pattern: Pattern | None) -> np.ndarray | None:
    """Lanes whose address is no multiple of the size, None if there is none."""
    if pattern is not None and pattern.aligned:
        return None
    over = request.addresses & (request.nbytes - 1)
    bad = over != 0
    if not bad.any():
        return None
    first = int(np.argmax(bad))
    where = "shared memory" if request.space == "shared" else warps.memory.nearest(int(request.addresses[first]))
    message = f"{request.nbytes} bytes, {int(over[first])} past a multiple of that, in {where}"
    warps.find("misaligned", request.pc, message, request.lanes[bad])
    return bad


def _global(warps: Warps, request: Request, pattern: Pattern | None) -> Access | np.ndarray:
    addresses, nbytes = request.addresses, request.nbytes
    window = warps.memory.find(int(addresses[0]))
    if window is None:
        bad = addresses >> WINDOW_BITS == int(addresses[0]) >> WINDOW_BITS
        message = f"{int(addresses[0]):#x} is in no tensor of this launch"
        warps.find("wild address", request.pc, message, request.lanes[bad])
        return bad
    offsets = addresses - window.base
    start = int(offsets[0])
    if (
        pattern is None
        or window.inside is not None
        or start + pattern.low < window.low
        or start + pattern.high > window.high
    ):
        if (addresses >> WINDOW_BITS != int(addresses[0]) >> WINDOW_BITS).any():
            text = warps.describe(request.pc)[1]
            raise MachineError(f"one request of {warps.entry.name} goes to several tensors: {text}")
        bad = offsets_outside(window, offsets, nbytes)
        if request.requested_bytes is not None and bad.any():
            bad = (offsets < window.low) | (offsets + request.requested_bytes > window.high)
        if bad.any():
            size = f"{window.high - window.low} bytes" + (" and gaps in between" if window.inside is not None else "")
            message = f"{nbytes} bytes at offset {int(offsets[bad][0]) - window.low} of {window.name}, which has {size}"
            warps.find("out of bounds", request.pc, message, request.lanes[bad])
            return bad
    if request.write and not window.writable:
        raise MachineError(f"{warps.entry.name} writes {window.name} through an address that could not be followed")
    direction = "write" if request.write else "read"
    key = f"{window.name} {direction}"
    begin = window.base // SECTOR
    if pattern is not None:
        requests, sectors = 1, pattern.sectors
        first = int(addresses[0])
        at = shift(pattern.granules(SECTOR, first % SECTOR, nbytes), first // SECTOR - begin)
        window.sectors(direction)[at] = True
    else:
        warp = (request.lanes >> 5) << 48
        touched = (addresses[:, None] + np.arange(0, nbytes, SECTOR)) // SECTOR
        window.sectors(direction)[touched - begin] = True
        requests, sectors = len(np.unique(warp)), len(np.unique(touched | warp[:, None]))
    warps.counts.global_requests[key] += requests
    warps.counts.global_sectors[key] += sectors
    warps.counts.global_bytes[key] += nbytes * len(request.lanes)
    return Access(window.buffer, request.lanes, offsets, pattern)


def _shared(warps: Warps, request: Request, pattern: Pattern | None) -> Access | np.ndarray:
    addresses, nbytes, shared = request.addresses, request.nbytes, warps.shared
    start = int(addresses[0]) - SHARED_BASE
    if pattern is None or start + pattern.low < 0 or start + pattern.high > shared.size:
        bad = (addresses < SHARED_BASE) | (addresses + nbytes > SHARED_BASE + shared.size)
        if bad.any():
            at = int(addresses[bad][0])
            what = "a global address" if at >> WINDOW_BITS else f"{nbytes} bytes at offset {at - SHARED_BASE}"
            message = f"{what}, and the block has {shared.size} bytes of shared memory"
            warps.find("out of bounds", request.pc, message, request.lanes[bad])
            return bad
    if pattern is None:
        edges = np.flatnonzero(np.diff(request.lanes >> 5)) + 1
        patterns = [pattern_of(part, nbytes) for part in np.split(addresses, edges)]
    else:
        patterns = [pattern]
    warps.counts.shared_requests += len(patterns)
    warps.counts.shared_conflicts += sum(own.passes for own in patterns)
    return Access(shared.buffer, request.lanes, addresses - SHARED_BASE + warps.shared_offset[request.lanes], pattern)


def _order(warps: Warps, request: Request, access: Access) -> None:
    """Races with what other warps have done."""
    shadow, nbytes = access.buffer.shadow, request.nbytes
    start, pattern = int(access.offsets[0]), access.pattern
    assert shadow is not None
    assert pattern is not None
    unit = nbytes if start % nbytes == 0 else 1
    if unit < shadow.granule:
        shadow.refine(unit)
    size = shadow.granule
    at = shift(pattern.granules(size, start % size, nbytes), start // size)
    if request.write:
        values = request.values
        changed = (lambda: _changed(access, at, size, nbytes, values)) if values is not None else None
        first = int(warps.number - warps.warp[0])
        block = range(first, first + warps.threads // 32)
        conflicts = shadow.on_write(at, warps.vector, warps.number, block, request.pc, changed, request.atomic)
    else:
        conflicts = shadow.on_read(at, warps.vector, warps.number, int(warps.warp[0]), request.pc, request.strong)
    for conflict in conflicts[:4]:
        what = "write" if request.write else "read"
        message = f"{request.space} {what} that nothing orders after the {conflict[3]} of another warp"
        warps.find("race", request.pc, message, request.lanes, conflict)


def _changed(access: Access, at: Granules, granule: int, nbytes: int, values: np.ndarray) -> np.ndarray:
    """Which of the granules a store changes."""
    numbers = np.arange(at.start, at.stop) if isinstance(at, slice) else at
    old = np.ascontiguousarray(access.gather(values.dtype.itemsize, values.shape[1])).view(np.uint8)
    different = (old != np.ascontiguousarray(values).view(np.uint8)).reshape(len(access.lanes), -1)
    return np.isin(numbers, (access.offsets[:, None] + np.arange(nbytes))[different] // granule)


def _state(warps: Warps, request: Request, access: Access) -> None:
    """What shared memory holds: nothing yet, data on their way, or data."""
    state = replace(access, buffer=warps.shared.state)
    size = min(request.nbytes, 8)
    count = request.nbytes // size
    written = _repeat(WRITTEN, size)
    if request.copy != "arrived":
        seen = state.gather(size, count)
        if not (seen == written).all():
            _report_state(warps, request, np.ascontiguousarray(seen).view(np.uint8).reshape(len(access.lanes), -1))
    if request.write:
        now = _repeat(PENDING, size) if request.copy == "issued" else written
        state.scatter(size, np.full((len(access.lanes), count), now))


def _report_state(warps: Warps, request: Request, state: np.ndarray) -> None:
    """`state`: a row of bytes for each lane."""
    coming, never = (state == PENDING).any(1), (state == NEVER).any(1)
    if coming.any():
        what = "overwritten" if request.write else "read"
        message = f"shared memory is {what} while data of cp.async are on their way to it"
        warps.find("early", request.pc, message, request.lanes[coming])
    elif never.any() and (not request.write or request.atomic):
        warps.find("never written", request.pc, "shared memory that nothing has written", request.lanes[never])


def _repeat(byte: int, size: int) -> np.generic:
    return np.frombuffer(bytes([byte] * 8), UNSIGNED[size])[0]
