"""How the kernels over pairs are cut up, for each family of GPUs: tiles that fit its shared memory without spills."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch

from adcorre_kernels.gpu.plan import ceil_div, power_of_2, round_up

# What the tables hold: two pieces of float16 keep 22 bits, two of bfloat16 16, one of bfloat16 8.
_TABLES = {
    "highest": (torch.float16, 2),
    "high": (torch.bfloat16, 2),
    "medium": (torch.bfloat16, 1),
}
LONGEST_KEPT = 256  # entries of a row that registers or shared memory can hold beside a tile
ROWS = 128  # tables end at a multiple of it; every tile has so many rows or a part of them


class Tile(NamedTuple):
    """BM rows x BN columns, BN dividing BM or ROWS; BK entries of a row at a time. KEPT: the program's rows are loaded
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


# (family, pieces) -> tiles of values and of the gradient. Shared memory ends at 64 KB on gfx942, 99 KB on sm_120 (and
# sm_86, sm_89), 163 KB on sm_80, 227 KB on sm_90 and sm_100, whose 512 columns of tensor memory hold three accumulators
# a chain of three products (Triton 3.6). Where kept rows would lie in registers (mma.sync), two pieces do not fit.
_TILES = {
    ("sm_80", 1): (Tile(128, 128, 256, True, 2, 8), Tile(128, 64, 256, True, 2, 8)),
    ("sm_80", 2): (Tile(128, 128, 32, False, 2, 8), Tile(64, 64, 32, False, 3, 8)),
    ("sm_90", 1): (Tile(128, 128, 256, True, 2, 8), Tile(64, 64, 256, True, 2, 4)),
    ("sm_90", 2): (Tile(128, 128, 64, False, 2, 8), Tile(128, 32, 64, True, 2, 8)),
    ("sm_100", 1): (Tile(128, 64, 256, True, 2, 8), Tile(128, 64, 256, True, 2, 8)),
    ("sm_100", 2): (Tile(128, 64, 64, False, 2, 8), Tile(128, 32, 64, False, 2, 8, 128)),
    ("sm_120", 1): (Tile(128, 64, 256, True, 2, 8), Tile(128, 32, 256, True, 2, 8)),
    ("sm_120", 2): (Tile(128, 128, 32, False, 2, 8), Tile(64, 64, 32, False, 3, 8)),
    ("gfx942", 1): (Tile(128, 128, 64, False, 2, 8), Tile(64, 64, 64, False, 2, 4)),
    ("gfx942", 2): (Tile(128, 128, 32, False, 2, 8), Tile(64, 64, 32, False, 2, 4)),
}
_LONG = (Tile(128, 64, 32, False, 2, 8), Tile(64, 32, 32, False, 2, 8))
_LONG_SM_100 = (Tile(128, 64, 32, False, 2, 8), Tile(128, 32, 64, False, 2, 8, 128))


class PairPlan(NamedTuple):
    """Launches over pairs, their grids, buffers' sizes and constants."""

    dtype: torch.dtype  # of the tables
    padded: int  # rows of a table
    table: tuple[int, int, int, int]
    tables_grid: tuple[int, int]
    tables: dict[str, Any]
    tiles: int  # blocks a side
    group: int  # tiles a side of a block
    values_grid: tuple[int, int]
    values: dict[str, Any]
    gradient_grid: tuple[int, int, int]
    gradient: dict[str, Any]
    project_grid: tuple[int, int]
    project: dict[str, Any]


@lru_cache(maxsize=64)
def family(device: torch.device) -> str:
    """Whose tiles a GPU takes; an A100's where there is none."""
    if device.type != "cuda":
        return "sm_80"
    if torch.version.hip is not None:
        return "gfx942"
    capability = torch.cuda.get_device_capability(device)
    return {(8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100", (10, 3): "sm_100"}.get(capability, "sm_120")


@lru_cache(maxsize=1024)
def of_pairs(
    n: int,
    k: int,
    d: int,
    precision: str,
    between_target: float,
    complete: bool,
    row_start: int,
    row_stop: int,
    family: str,
) -> PairPlan:
    dtype, pieces = _TABLES[precision]
    kept = d <= LONGEST_KEPT
    values, gradient = _TILES[family, pieces]
    if not kept:
        values, gradient = _LONG_SM_100 if family == "sm_100" else _LONG
    columns = max(64, power_of_2(d)) if kept else round_up(d, 64)
    rows = row_stop - row_start
    whole = rows == n
    padded = round_up(n, ROWS) + (ROWS if row_start % ROWS else 0)  # rows' tiles start at row_start
    strips = ceil_div(rows, values.BM)
    group = 1 << max(0, min(3, strips.bit_length() - 4))
    tiles = ceil_div(padded, values.BM * group)
    blocks = tiles * (tiles + 1) // 2 if whole else tiles * ceil_div(strips, group)
    width = power_of_2(columns)
    samples = max(1, 4096 // width)
    streaming = {"D": d, "W": width, "BS": samples, "num_warps": 4}  # fusion: see `plan.Shape.options`
    common = {"DP": columns, "PIECES": pieces, "TARGET": between_target, "COMPLETE": complete}
    block = columns if gradient.KEPT else min(columns, gradient.BV)
    return PairPlan(
        dtype=dtype,
        padded=padded,
        table=(k, pieces, padded, columns),
        tables_grid=(ceil_div(padded, samples), k),
        tables={**streaming, "DP": columns, "PIECES": pieces},
        tiles=tiles,
        group=group,
        values_grid=(blocks * group, k),
        values={**common, "WHOLE": whole, **values.options(columns)},
        gradient_grid=(ceil_div(rows, gradient.BM), k, ceil_div(d, block)),
        gradient={**common, "D": d, "BV": block, **gradient.options(columns)},
        project_grid=(ceil_div(rows, samples), k),
        project=streaming,
    )
