"""Limits and launch settings for each family of GPUs.

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
    """Limits of a multiprocessor. 0: unknown."""

    shared: int  # bytes of shared memory available to a program
    warps: int = 0
    programs: int = 0
    matrix_flops: int = 0  # per cycle, in bfloat16


FAMILIES = {
    "sm_80": Family(163 << 10, 64, 32, 2048),
    "sm_90": Family(227 << 10, 64, 32, 4096),
    "sm_100": Family(227 << 10, 64, 32, 8192),
    "sm_120": Family(99 << 10, 48, 24, 1024),
    "gfx942": Family(64 << 10),
}


class Model(NamedTuple):
    """A GPU model: bytes per second of a copy, multiprocessors, cycles per second under load."""

    family: str
    bandwidth: float
    multiprocessors: int
    clock: float

    def cycles(self, nbytes: float) -> float:
        """Cycles to transfer `nbytes` per multiprocessor."""
        return nbytes / (self.bandwidth / self.multiprocessors) * self.clock


# Bandwidth: 90 % of the data sheet, about what copies reach (H200: from published measurements of kernels).
MODELS = {
    "H100": Model("sm_90", 3.0e12, 132, 1.755e9),
    "H200": Model("sm_90", 4.3e12, 132, 1.755e9),
    "A100": Model("sm_80", 1.8e12, 108, 1.41e9),
}


class GramSettings(NamedTuple):
    """Launch settings of `gram_per_sample`, whose programs are single warps."""

    width: int = 32  # entries W of a tile; 64 would spill
    stages: int = 5  # stages of the pipeline that copies samples to shared memory: two steps are in flight
    programs: int = 8  # programs of the statistics per multiprocessor
    sample_elements: int = 2048  # maximum entries k d of a sample: its sums fit the registers of a warp


class StreamingSettings(NamedTuple):
    """Launch settings of the passes over samples, for one element size.

    With a warp per sample a tile is BS samples x W entries of one embedding; else BK embeddings x W entries.
    """

    max_width: int  # maximum entries W of a tile of `warp_per_sample`
    row_elements: int  # maximum entries BS W of such a tile
    look_ahead: bool  # load the next samples before computing on these
    warps: int = 4
    sample_elements: int = 8192  # maximum entries BS k d of its samples: they fit the registers of those warps
    program_elements: int = 8192  # maximum entries of a sample that a program of `program_per_sample` holds
    small_elements: int = 2048  # up to this size such a program has 4 warps, above 8
    programs: int = 2  # programs of the statistics per multiprocessor
    small_programs: int = 4  # the same for programs of `program_per_sample` with 4 warps
    gradient_steps: int = 16  # maximum steps of a program without state between steps (gradient, `program_embedding`)
    gradient_programs: int = 32  # such programs per multiprocessor before a program gets a second step
    gram: GramSettings | None = None  # None: no `gram_per_sample`


# float32 has enough bytes in flight without look-ahead, and no free registers.
_BYTES_4 = StreamingSettings(max_width=128, row_elements=512, look_ahead=False)
_BYTES_2 = StreamingSettings(max_width=256, row_elements=1024, look_ahead=True, gram=GramSettings())
_BYTES_2_WARP = _BYTES_2._replace(gram=None)  # sm_120 would spill; not tested on AMD
# (family, bytes of an element) -> settings.
STREAMING = {
    ("sm_80", 4): _BYTES_4, ("sm_80", 2): _BYTES_2,
    ("sm_90", 4): _BYTES_4, ("sm_90", 2): _BYTES_2,
    ("sm_100", 4): _BYTES_4, ("sm_100", 2): _BYTES_2,
    ("sm_120", 4): _BYTES_4, ("sm_120", 2): _BYTES_2_WARP,
    ("gfx942", 4): _BYTES_4, ("gfx942", 2): _BYTES_2_WARP,
}  # fmt: skip


class PairTile(NamedTuple):
    """BM rows x BN columns, BN dividing BM or 128; BK entries of a row at a time. RESIDENT: the program loads its whole
    rows once. Otherwise a program of the gradient computes BV entries of a row."""

    BM: int
    BN: int
    BK: int
    RESIDENT: bool
    STAGES: int
    warps: int
    BV: int = 256

    def options(self, columns: int) -> dict[str, Any]:
        tile = {name: getattr(self, name) for name in ("BM", "BN", "RESIDENT", "STAGES")}
        return {**tile, "BK": min(self.BK, columns), "num_warps": self.warps, "enable_fp_fusion": True}


# (family, pieces of the tables) -> tiles of the values and of the gradient that fit the family's shared memory without
# spills. The 512 columns of sm_100's tensor memory hold three accumulators per chain of three products (Triton 3.6).
# With mma.sync, resident rows are in registers, where two pieces do not fit.
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
# The same for rows that are too long to be resident.
_LONG_ROWS = (PairTile(128, 64, 32, False, 2, 8), PairTile(64, 32, 32, False, 2, 8))
PAIR_TILES_LONG_ROWS = dict.fromkeys(FAMILIES, _LONG_ROWS) | {
    "sm_100": (PairTile(128, 64, 32, False, 2, 8), PairTile(128, 32, 64, False, 2, 8, 128))
}


@lru_cache(maxsize=64)
def family(device: torch.device) -> str:
    """The family whose settings a GPU uses; that of an A100 without a GPU."""
    if device.type != "cuda":
        return "sm_80"
    if torch.version.hip is not None:
        return "gfx942"
    capability = torch.cuda.get_device_capability(device)
    return {(8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100", (10, 3): "sm_100"}.get(capability, "sm_120")


@lru_cache(maxsize=64)
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; those of an H100 without a GPU, so that tests use its grids."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
