"""Timing of several contenders in turns, peak memory, CUDA graphs, and whether the machine is idle."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


def in_turns(
    contenders: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    seconds: float,
    most: int,
    warm: int = 1,
    batch: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of a call, for each turn of `batch` calls. Contenders take turns, so that drift affects all of them.

    Rounds continue for about `seconds`, at least two and at most `most` of them, after `warm` that do not count.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    began = time.perf_counter()
    for turn in range(most + warm):
        if turn == warm:
            began = time.perf_counter()
        if turn >= warm + 2 and time.perf_counter() - began > seconds:
            break
        for name, call in contenders.items():
            synchronize(device)
            start = clock()
            for _ in range(batch):
                call()
            synchronize(device)
            if turn >= warm:
                times[name].append((clock() - start) / batch)
    return times


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(seconds: Sequence[float]) -> dict[str, str]:
    """Median, p20 and p80 of a contender's seconds, as a row has them."""
    own = sorted(seconds)
    figures = {"seconds": statistics.median(own), "p20": own[len(own) // 5], "p80": own[len(own) * 4 // 5]}
    return {name: f"{value:.4g}" for name, value in figures.items()}


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median over rounds of slow over fast: both were taken at about the same moment."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def difference(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median over rounds of slow minus fast."""
    return statistics.median(a - b for a, b in zip(slow, fast, strict=True))


def peak_during(call: Callable[[], object], device: torch.device) -> int:
    """Bytes at the peak of one call beyond those held before it; what the call returns is counted."""
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    give_back_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _bytes("self/status", "VmRSS")
    except OSError:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    call()
    peak = _bytes("self/status", "VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return max(0, peak - before)


def give_back_freed_memory() -> None:
    """Freed memory that the C library still holds would hide what a call takes."""
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def limit_memory(nbytes: int) -> None:
    """Beyond so many bytes more than now, this process's allocations fail (Linux; elsewhere there is no limit)."""
    if now := _bytes("self/status", "VmData"):
        resource.setrlimit(resource.RLIMIT_DATA, (now + nbytes, resource.RLIM_INFINITY))


def available_memory() -> int:
    """Bytes that a new process could take now."""
    return _bytes("meminfo", "MemAvailable") or 8 << 30


def _bytes(file: str, field: str) -> int:
    """What a file in /proc says of a field in KiB; 0 on a system without it."""
    try:
        lines = Path("/proc", file).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


def capture(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of a call, and what the call returned, which a replay writes anew."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result


def busy(threads: int, seconds: float = 0.3) -> str:
    """What keeps `threads` cores from being free, as a sentence; "" on an idle machine, or one without /proc/stat."""
    if (before := _busy_seconds()) is None:
        return ""
    began, own = time.perf_counter(), time.process_time()
    time.sleep(seconds)
    others = (_busy_seconds() or before) - before - (time.process_time() - own)
    others /= time.perf_counter() - began
    cores = os.cpu_count() or 1
    if cores - others > threads - 0.3:
        return ""
    return f"other processes use {others:.1f} of {cores} cores (load average {os.getloadavg()[0]:.1f})"


def _busy_seconds() -> float | None:
    """Processor seconds of all processes, and those that a virtual machine's host took, since the start."""
    try:
        fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # without idle and waiting for disks
