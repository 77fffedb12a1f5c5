"""Global and shared memory: bounds, alignment, what was never written, and what a request costs.

Each tensor of a launch is a window with an address range of its own, far from every other, so that a step over a
tensor's end lands in nothing. Two tensors that share storage are two windows on one buffer.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ptx_machine.races import Shadow

WINDOW_BITS = 40
SHARED_BASE = 1024  # where the shared window of a block begins, so that a null pointer is not in it
NEVER, PENDING, WRITTEN = 0x00, 0x55, 0xFF
SECTOR = 32
UNSIGNED: dict[int, type] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class Buffer:
    """The bytes of one storage, padded at the end to whole 16-byte words."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data
        self.shadow: Shadow | None = None  # None: no instruction writes it, so nothing can race
        self._typed: dict[int, np.ndarray] = {}

    def typed(self, size: int) -> np.ndarray:
        """The same bytes as unsigned numbers of `size` bytes."""
        view = self._typed.get(size)
        if view is None:
            view = self.data[: len(self.data) // size * size].view(UNSIGNED[size])
            self._typed[size] = view
        return view


class Window:
    """One argument: bytes [low, high) of a buffer; `inside` marks the bytes that are the tensor's, None if all are."""

    def __init__(self, name: str, buffer: Buffer, low: int, high: int, inside: np.ndarray | None = None) -> None:
        self.name, self.buffer, self.low, self.high, self.inside = name, buffer, low, high, inside
        self.base = 0  # address of the buffer's first byte as this argument sees it
        self.writable = True
        self.touched: dict[str, np.ndarray] = {}  # "read", "write" -> whether each sector was

    def sectors(self, direction: str) -> np.ndarray:
        """Marks of the sectors, from the one that holds the buffer's first byte."""
        marks = self.touched.get(direction)
        if marks is None:
            marks = self.touched[direction] = np.zeros((self.high + 2 * SECTOR) // SECTOR + 1, bool)
        return marks


class Pattern:
    """What follows from the lanes' addresses relative to the first one's, and from the first one's place in a line."""

    def __init__(self, rel: np.ndarray, phase: int, nbytes: int) -> None:
        self.rel = rel
        self.low, self.high = int(rel.min()), int(rel.max()) + nbytes
        self.aligned = not ((rel + phase) & (nbytes - 1)).any()
        self.contiguous = bool((rel == np.arange(len(rel)) * nbytes).all())
        self.duplicates = len(np.unique(rel)) < len(rel)
        self.sectors = len(np.unique((rel + phase)[:, None] + np.arange(0, nbytes, min(nbytes, 32)) >> 5))
        self.passes = bank_passes(rel + phase, nbytes)
        self._granules: dict[tuple[int, int], np.ndarray | slice] = {}

    def granules(self, size: int, phase: int, nbytes: int) -> np.ndarray | slice:
        """Granules of `size` bytes touched, relative to the granule of the first lane's first byte."""
        cached = self._granules.get((size, phase))
        if cached is None:
            at = np.unique((self.rel[:, None] + phase + np.arange(0, nbytes, min(size, nbytes))) // size)
            dense = at[-1] - at[0] + 1 == len(at)
            cached = slice(int(at[0]), int(at[-1]) + 1) if dense else at
            self._granules[size, phase] = cached
        return cached


@lru_cache(maxsize=1 << 14)
def _pattern(rel: bytes, phase: int, nbytes: int) -> Pattern:
    return Pattern(np.frombuffer(rel, np.int64), phase, nbytes)


def pattern_of(addresses: np.ndarray, nbytes: int) -> Pattern:
    first = int(addresses[0])
    return _pattern((addresses - first).tobytes(), first & 127, nbytes)


def bank_passes(addresses: np.ndarray, nbytes: int) -> int:
    """Extra passes over the 32 banks of 4 bytes: 8 and 16 bytes a lane go in two and four groups of lanes anyway."""
    lanes = 32 // max(1, nbytes // 4)
    extra = 0
    for start in range(0, len(addresses), lanes):
        words = np.unique(addresses[start : start + lanes, None] + np.arange(0, nbytes, min(nbytes, 4)) >> 2)
        extra += int(np.bincount(words & 31).max()) - 1
    return extra


class Shared:
    """Shared memory of `blocks` blocks side by side, with a state for each byte."""

    def __init__(self, size: int, blocks: int, warps: int, races: bool) -> None:
        self.size = size
        self.stride = -(-size // 16) * 16
        self.buffer = Buffer(np.zeros(self.stride * blocks, np.uint8))
        self.state = Buffer(np.zeros(self.stride * blocks, np.uint8))
        self.warps, self.races = warps, races
        self.reset()

    def reset(self) -> None:
        """A new block begins: nothing is written yet; what lies there is NaN in every float format."""
        self.buffer.data[:] = 0xFF
        self.state.data[:] = NEVER
        if self.races:
            self.buffer.shadow = Shadow(len(self.buffer.data), self.warps)


class GlobalMemory:
    """The windows of a launch."""

    def __init__(self) -> None:
        self.windows: list[Window] = []

    def add(self, window: Window, storage_address: int) -> int:
        """The argument's address. Its last bits are those of the real one, since alignment is part of the contract."""
        self.windows.append(window)
        window.base = (len(self.windows) << WINDOW_BITS) + storage_address % 4096
        return window.base + window.low

    def find(self, address: int) -> Window | None:
        number = (address >> WINDOW_BITS) - 1
        return self.windows[number] if 0 <= number < len(self.windows) else None

    def nearest(self, address: int) -> str:
        window = self.find(address)
        if window is None:
            return "no tensor of this launch"
        return f"{window.name} ({window.high - window.low} bytes)"


def offsets_outside(window: Window, offsets: np.ndarray, nbytes: int) -> np.ndarray:
    """Which accesses are not wholly inside the tensor (bool, one a lane)."""
    outside = (offsets < window.low) | (offsets + nbytes > window.high)
    if window.inside is not None:
        within = np.where(outside, window.low, offsets)[:, None] + np.arange(nbytes)
        outside |= ~window.inside[within - window.low].all(1)
    return outside
