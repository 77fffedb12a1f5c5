"""Plans of the launches over pairs: grids, buffer sizes and options, from shapes and the GPU's family."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch

from adcorre_kernels.gpu import gpus
from adcorre_kernels.gpu.plan import ceil_div, power_of_2, round_up

# Dtype and pieces of the tables: two pieces of float16 have 22 bits, two of bfloat16 16, one of bfloat16 8.
_TABLES = {
    "highest": (torch.float16, 2),
    "high": (torch.bfloat16, 2),
    "medium": (torch.bfloat16, 1),
}
MAX_RESIDENT_D = 256  # maximum entries of a row that fits in registers or shared memory beside a tile
ROWS = 128  # tables are padded to a multiple of this; the rows of every tile divide it


class PairPlan(NamedTuple):
    """Launches over pairs, their grids, buffers' sizes and constants."""

    dtype: torch.dtype  # of the tables
    padded: int  # rows of a table
    table: tuple[int, int, int, int]
    tables_grid: tuple[int, int]
    tables: dict[str, Any]
    tiles: int  # blocks per side
    group: int  # tiles per side of a block
    values_grid: tuple[int, int]
    values: dict[str, Any]
    gradient_grid: tuple[int, int, int]
    gradient: dict[str, Any]
    project_grid: tuple[int, int]
    project: dict[str, Any]


@lru_cache(maxsize=1024)
def plan_pairs(
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
    resident = d <= MAX_RESIDENT_D
    values, gradient = gpus.PAIR_TILES[family, pieces] if resident else gpus.PAIR_TILES_LONG_ROWS[family]
    columns = max(64, power_of_2(d)) if resident else round_up(d, 64)
    rows = row_stop - row_start
    whole = rows == n
    padded = round_up(n, ROWS) + (ROWS if row_start % ROWS else 0)  # tiles of rows start at row_start
    strips = ceil_div(rows, values.BM)
    group = 1 << max(0, min(3, strips.bit_length() - 4))
    tiles = ceil_div(padded, values.BM * group)
    blocks = tiles * (tiles + 1) // 2 if whole else tiles * ceil_div(strips, group)
    width = power_of_2(columns)
    samples = max(1, 4096 // width)
    streaming = {"D": d, "W": width, "BS": samples, "num_warps": 4}  # fusion: see `plan.SampleTile.options`
    common = {"DP": columns, "PIECES": pieces, "TARGET": between_target, "COMPLETE": complete}
    block = columns if gradient.RESIDENT else min(columns, gradient.BV)
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
