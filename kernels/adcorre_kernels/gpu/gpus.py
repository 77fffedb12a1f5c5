"""What is known of each family of GPUs: its limits, and the launch settings of the kernels on it.

To tune the kernels for a family, change its entries in `STREAMING` and `PAIR_TILES`; for a new family, add it to
`FAMILIES`, to both tables and to `family`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch

OLDEST_CUDA = (8, 0)
AMD = ("gfx90a", "gfx94", "gfx95")


class Family(NamedTuple):
    """Limits of a multiprocessor. 0: not known here."""

    shared: int  # bytes of shared memory that a program may have
    warps: int = 0
    programs: int = 0
    matrix_flops: int = 0  # a cycle, in bfloat16


FAMILIES = {
    "sm_80": Family(163 << 10, 64, 32, 2048),
    "sm_90": Family(227 << 10, 64, 32, 4096),
    "sm_100": Family(227 << 10, 64, 32, 8192),
    "sm_120": Family(99 << 10, 48, 24, 1024),
    "gfx942": Family(64 << 10),
}


class Model(NamedTuple):
    """A GPU on the market: bytes per second that a copy reaches, multiprocessors, cycles per second under load."""

    family: str
    bandwidth: float
    multiprocessors: int
    clock: float

    def cycles(self, nbytes: float) -> float:
        """Cycles that the memory takes for so many bytes of each multiprocessor's work."""
        return nbytes / (self.bandwidth / self.multiprocessors) * self.clock


# Bandwidth: 90 % of the data sheets', about what copies reach (H200: as published measurements of kernels have it).
MODELS = {
    "H100": Model("sm_90", 3.0e12, 132, 1.755e9),
    "H200": Model("sm_90", 4.3e12, 132, 1.755e9),
    "A100": Model("sm_80", 1.8e12, 108, 1.41e9),
}


class GramSettings(NamedTuple):
    """Launch settings of `gram_per_sample`, whose programs are single warps."""

    width: int = 32  # entries W of a tile: 64 spill
    stages: int = 5  # of the pipeline that copies samples to shared memory: two steps are on their way
    programs: int = 8  # of the statistics, for each multiprocessor
    sample_numbers: int = 2048  # entries of a sample, all embeddings, whose sums fit the registers of a warp


class StreamingSettings(NamedTuple):
    """Launch settings of the passes over samples, for one element size.

    With a warp per sample a tile is BS samples x W entries of one embedding; else BK embeddings x W entries.
    """

    max_width: int  # most entries W of a tile of `warp_per_sample`
    row_numbers: int  # most entries of its BS samples' rows in one tile
    look_ahead: bool  # load the next samples before computing on these
    warps: int = 4
    sample_numbers: int = 8192  # entries of BS samples, all embeddings, that fit the registers of those warps
    program_numbers: int = 8192  # entries of a sample that one program of `program_per_sample` can hold
    small_numbers: int = 2048  # up to here such a program has 4 warps, beyond 8
    programs: int = 2  # of the statistics, for each multiprocessor
    small_programs: int = 4  # the same where a program of `program_per_sample` has 4 warps
    gradient_steps: int = 16  # most steps of a program that keeps nothing: the gradient's and `program_embedding`'s
    gradient_programs: int = 32  # for each multiprocessor, before such a program gets a second step
    gram: GramSettings | None = None  # None: no `gram_per_sample`


# float32 has enough bytes in flight without look-ahead, and no register to spare.
_BYTES_4 = StreamingSettings(max_width=128, row_numbers=512, look_ahead=False)
_BYTES_2 = StreamingSettings(max_width=256, row_numbers=1024, look_ahead=True, gram=GramSettings())
_BYTES_2_WARP = _BYTES_2._replace(gram=None)  # sm_120 would spill; on AMD nothing has run
# (family, bytes of an element) -> settings.
STREAMING = {
    ("sm_80", 4): _BYTES_4, ("sm_80", 2): _BYTES_2,
    ("sm_90", 4): _BYTES_4, ("sm_90", 2): _BYTES_2,
    ("sm_100", 4): _BYTES_4, ("sm_100", 2): _BYTES_2,
    ("sm_120", 4): _BYTES_4, ("sm_120", 2): _BYTES_2_WARP,
    ("gfx942", 4): _BYTES_4, ("gfx942", 2): _BYTES_2_WARP,
}  # fmt: skip


class PairTile(NamedTuple):
    """BM rows x BN columns, BN dividing BM or 128; BK entries of a row at a time. KEPT: the program's rows are loaded
    once, all of their chunks. Else a program of the gradient has BV entries of a row."""

    BM: int
    BN: int
    BK: int
    KEPT: bool
    STAGES: int
    warps: int
    BV: int = 256

    def options(self, columns: int) -> dict[str, Any]:
        tile = {"BM": self.BM, "BN": self.BN, "BK": min(self.BK, columns), "KEPT": self.KEPT, "STAGES": self.STAGES}
        return {**tile, "num_warps": self.warps, "enable_fp_fusion": True}


# (family, pieces of the tables) -> tiles of values and of the gradient, within the family's shared memory and without
# spills. The 512 columns of sm_100's tensor memory hold three accumulators a chain of three products (Triton 3.6).
# Where kept rows would lie in registers (mma.sync), two pieces do not fit.
PAIR_TILES = {
    ("sm_80", 1): (PairTile(128, 128, 256, True, 2, 8), PairTile(128, 64, 256, True, 2, 8)),
    ("sm_80", 2): (PairTile(128, 128, 32, False, 2, 8), PairTile(64, 64, 32, False, 3, 8)),
    ("sm_90", 1): (PairTile(128, 128, 256, True, 2, 8), PairTile(64, 64, 256, True, 2, 4)),
    ("sm_90", 2): (PairTile(128, 128, 64, False, 2, 8), PairTile(128, 32, 64, True, 2, 8)),
    ("sm_100", 1): (PairTile(128, 64, 256, True, 2, 8), PairTile(128, 64, 256, True, 2, 8)),
    ("sm_100", 2): (PairTile(128, 64, 64, False, 2, 8), PairTile(128, 32, 64, False, 2, 8, 128)),
    ("sm_120", 1): (PairTile(128, 64, 256, True, 2, 8), PairTile(128, 32, 256, True, 2, 8)),
    ("sm_120", 2): (PairTile(128, 128, 32, False, 2, 8), PairTile(64, 64, 32, False, 3, 8)),
    ("gfx942", 1): (PairTile(128, 128, 64, False, 2, 8), PairTile(64, 64, 64, False, 2, 4)),
    ("gfx942", 2): (PairTile(128, 128, 32, False, 2, 8), PairTile(64, 64, 32, False, 2, 4)),
}
# The same for rows that are too long to be kept.
_LONG_ROWS = (PairTile(128, 64, 32, False, 2, 8), PairTile(64, 32, 32, False, 2, 8))
PAIR_TILES_LONG_ROWS = dict.fromkeys(FAMILIES, _LONG_ROWS) | {
    "sm_100": (PairTile(128, 64, 32, False, 2, 8), PairTile(128, 32, 64, False, 2, 8, 128))
}


@lru_cache(maxsize=64)
def family(device: torch.device) -> str:
    """The family whose settings a GPU uses; an A100's where there is no GPU."""
    if device.type != "cuda":
        return "sm_80"
    if torch.version.hip is not None:
        return "gfx942"
    capability = torch.cuda.get_device_capability(device)
    return {(8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100", (10, 3): "sm_100"}.get(capability, "sm_120")


@lru_cache(maxsize=64)
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; an H100's where there is none, so that tests run its grids."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
