"""Times of the terms' launches over n as `python -m bench static` predicts them: what does not grow with n, too.

A launch takes LAUNCH_SECONDS and the larger of two times: its bytes at the GPU's bandwidth, or the instructions of the
multiprocessor with the most samples. Slots are bytes that do not grow with n. A prediction that knows of no latency: a
launch with few samples for each program takes longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from adcorre_kernels.gpu import gpus, plan

SIZES = (8192, 65536, 1 << 20)
K, D, CLASSES = 7, 256, 7
LAUNCH_SECONDS = 3e-6  # the least that a launch took on an H200: kernels/README.md, `reduce` at n = 60


class Predicted(NamedTuple):
    """Bytes and seconds of one forward and backward pass."""

    dtype: str
    n: int
    launches: int
    slots: int  # bytes written and read
    busiest: float  # samples of the busiest multiprocessor, over their mean: what a last, partial wave costs
    seconds: float
    copy_share: float  # the time of the minimum traffic, at a copy's bandwidth, over these seconds


def predicted(dtype: torch.dtype, n: int, cycles: tuple[float, float], model: gpus.Model) -> Predicted:
    """cycles: of a sample's instructions in statistics and gradient, as in bench/results/static.csv."""
    size = dtype.itemsize
    arguments = (n, K, D, CLASSES, -1.0, size, True, model.family, model.multiprocessors)
    forward, backward = plan.plan_statistics(*arguments), plan.plan_gradient(*arguments)
    slot, rows = forward.streaming["SLOT"], forward.reduce["ROWS"]
    used = forward.grid[0] * (CLASSES if forward.local else 1)
    slots = 4 * used * slot * rows
    x = n * K * D * size
    most = [
        _busiest(forward.chunk * (1 if forward.local else forward.tile.BS), used, n, model, forward.local),
        _busiest(backward.chunk, backward.grid[0], n, model, False),
    ]
    moved = [x + slots + 12 * n, 2 * x + 8 * n]
    passes = [
        max(nbytes / model.bandwidth, own * samples / model.clock)
        for nbytes, own, samples in zip(moved, cycles, most, strict=True)
    ]
    launches = (3 if forward.local else 5) + 1
    seconds = sum(passes) + slots / model.bandwidth + (0 if forward.local else 17 * n / model.bandwidth)
    seconds += launches * LAUNCH_SECONDS
    even = n / model.multiprocessors
    return Predicted(
        str(dtype)[6:], n, launches, 2 * slots, max(most) / even, seconds, 3 * x / model.bandwidth / seconds
    )


def _busiest(chunk: int, programs: int, n: int, model: gpus.Model, by_class: bool) -> float:
    """Samples of the multiprocessor with the most; by_class: the programs of all classes share a chunk."""
    samples = chunk / CLASSES if by_class else chunk
    return min(n, samples * plan.ceil_div(programs, model.multiprocessors))


def lines(rows: list[dict[str, str]]) -> Iterator[str]:
    """A line for each dtype and n, from the table's rows; a kernel's later rows win."""
    name = "H200"
    model = gpus.MODELS[name]
    cycles = {
        (row["dtype"], row["kernel"].partition("_")[2]): float(row["issue_cycles"])
        for row in rows
        if row["case"] == "paper" and row["target"] == model.family and row["issue_cycles"]
    }
    for dtype in (torch.float32, torch.bfloat16):
        own = (cycles[str(dtype)[6:], "statistics"], cycles[str(dtype)[6:], "gradient"])
        for n in SIZES:
            entry = predicted(dtype, n, own, model)
            yield (
                f"{name} {entry.dtype:9} n = {n:9,}: {entry.seconds * 1e6:7,.0f} us predicted, "
                f"{entry.copy_share:.0%} of a copy; {entry.launches} launches, slots {entry.slots / 2**20:.0f} MiB, "
                f"busiest multiprocessor {entry.busiest:.2f} of the mean"
            )
