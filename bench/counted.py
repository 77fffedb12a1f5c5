"""Counts by the PTX machine at the paper's shape: executions of each line of the kernels, and bytes moved."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from unittest import mock

import torch

from bench.host import forget_plans

SAMPLES = 8256  # on one multiprocessor two programs take them, half each: about what a program has at n = 1,048,576
K, D, CLASSES = 7, 256, 7


@dataclass(frozen=True)
class Counted:
    """Of one launch, for one sample: executions by a warp of an instruction, and bytes to and from memory."""

    streaming: float  # of an instruction in the loop over samples
    trips: dict[str, float]  # of those outside, by the line of the kernel
    traffic: float

    def instructions(self, places: list[str], loop: tuple[int, int]) -> float:
        """Warp instructions that machine code takes for a sample.

        places: each instruction's line; loop: first and last of the loop over samples. Outside of it a line that the
        PTX has not is ptxas's own, and counts as the line before it.
        """
        total, trips = 0.0, 0.0
        for at, place in enumerate(places):
            trips = self.trips.get(place, trips)
            total += self.streaming if loop[0] <= at <= loop[1] else trips
        return total


@lru_cache(maxsize=32)
def counted(dtype: torch.dtype, target: str) -> dict[str, Counted]:
    """By kernel: one forward and backward pass in lockstep. Caches hold what a launch reads twice, but for x."""
    import ptx_machine
    from adcorre_kernels.gpu import gpus, launch, ops

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, K, D, generator=generator).to(dtype)
    targets = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    with (
        mock.patch.object(gpus, "multiprocessors", return_value=1),
        ptx_machine.target(target, lockstep=True) as report,
    ):
        flat = launch.statistics(x, targets, CLASSES, -100, -1.0)
        _, tables = launch.terms(flat, torch.full((CLASSES,), 0.5), K, D, -1.0, -1.0, -1.0)
        up = torch.ones(())
        launch.gradient(x, targets, up, up, up, *ops.split_tables(tables, CLASSES, K, D), -100, -1.0)
    forget_plans()
    report.raise_if_any()
    return {counts.kernel: _counted(counts) for counts in report.counts}


def _counted(counts: Any) -> Counted:
    """The loop over samples: what runs more than half as often as what runs most."""
    most = max(executed.times for executed in counts.by_instruction)
    times: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    for executed in counts.by_instruction:
        if executed.times <= most / 2:
            times[executed.place] += executed.times
            lines[executed.place] += 1
    trips = {place: times[place] / lines[place] / SAMPLES for place in lines}
    return Counted(most / SAMPLES, trips, counts.distinct_bytes / SAMPLES)
