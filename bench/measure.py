"""What the benchmarks share: where a row comes from, times taken in turns, peaks of memory, rows appended."""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import datetime
import platform
import re
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
RETRIED = ("failed", "not installed")  # how the notes begin of rows that do not count as done
Rows = list[dict[str, str]]
ORIGIN = ("date", "commit", "device", "driver", "threads", "torch", "triton")


def check_device(parser: argparse.ArgumentParser, name: str) -> torch.device:
    """The device of --device; the parser's error for one that is neither a CPU nor a GPU of this machine."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        parser.error(f"--device: expected cpu, cuda or cuda:N, got {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        parser.error(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device if device.type == "cpu" else torch.device("cuda", device.index or 0)


def add_options(parser: argparse.ArgumentParser, results: Path) -> None:
    """The options that loss, step and scale have in common."""
    parser.add_argument("--minutes", type=float, help="stop after so many; rows are kept; default: no limit")
    parser.add_argument("--again", action="store_true", help="also run what is in the file already (default: not)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--out", type=Path, default=results, help="CSV file to which the rows are appended")


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> torch.device:
    """Holds what `add_options` added to its limits; gives the device, from here on the current one."""
    if options.threads < 1 or (options.minutes is not None and not options.minutes > 0):
        parser.error("--threads: expected at least 1; --minutes: more than 0")
    device = check_device(parser, options.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    options.device = str(device)
    return device


class Deadline:
    """The end of --minutes. Who finds it passed says so once and measures no more; a later call goes on from there."""

    def __init__(self, minutes: float | None) -> None:
        self.end = float("inf") if minutes is None else time.monotonic() + 60 * minutes

    def left(self) -> float:
        """Seconds until then, not below 0; infinite without a limit."""
        return max(0.0, self.end - time.monotonic())

    def passed(self, before: str) -> bool:
        if self.left():
            return False
        print(f"time is up before {before}; the rows so far are kept, and the same command goes on from there")
        return True


def done_before(path: Path, key: Sequence[str]) -> set[tuple[str, ...]]:
    """The keys of a file's rows, without those of cases that failed or lacked a package: these are tried again."""
    return {tuple(row[name] for name in key) for row in read(path) if not row["note"].startswith(RETRIED)}


def origin(device: torch.device | str) -> dict[str, Any]:
    """What every row says about where it came from; its keys are ORIGIN."""
    try:
        import triton
    except ImportError:
        triton = None
    on_gpu = torch.device(device).type == "cuda"
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M"),
        "commit": _output("git", "describe", "--always", "--dirty") or "unknown",
        "device": torch.cuda.get_device_name(device) if on_gpu else processor(),
        "driver": _driver() if on_gpu else "",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": "" if triton is None else triton.__version__,
    }


def processor() -> str:
    """The CPU's name as its maker gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _driver() -> str:
    """Never empty: an empty driver marks a row of a CPU."""
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0] or "unknown"


def _output(tool: str, *words: str) -> str:
    """What a tool prints, nothing where it is not installed or fails."""
    if (path := shutil.which(tool)) is None:
        return ""
    return subprocess.run([path, *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def append(path: Path, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds rows to a CSV file, which begins with `fields`; a file with other fields is refused and left as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        with path.open(newline="") as file:
            if (there := next(csv.reader(file), None)) != list(fields):
                raise SystemExit(
                    f"{path}: its first line is {there}, expected {list(fields)}; name another file by --out"
                )
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fields, restval="", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> Rows:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def newest(file: str, parts: tuple[str, ...], gpu: bool, key: tuple[str, ...]) -> dict[str, Rows]:
    """By device, the last row of each case, in the order in which cases first came; GPUs have a driver, CPUs none."""
    found: dict[str, dict[tuple[str, ...], dict[str, str]]] = {}
    for row in read(RESULTS / file):
        if row["part"] in parts and bool(row["driver"]) == gpu and not row.get("note", "").startswith(RETRIED):
            found.setdefault(row["device"], {})[tuple(row[name] for name in ("part", *key))] = row
    return {device: list(cases.values()) for device, cases in found.items()}


def in_turns(
    contenders: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    seconds: float,
    most: int,
    warm: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each run. All contenders take a turn in every round, so that a drift of the machine meets all alike.

    Rounds go on for about so many `seconds`, at least two and at most `most` of them, after `warm` that do not count.
    """
    found: dict[str, list[float]] = {name: [] for name in contenders}
    began = time.perf_counter()
    for turn in range(most + warm):
        if turn == warm:
            began = time.perf_counter()
        if turn >= warm + 2 and time.perf_counter() - began > seconds:
            break
        for name, call in contenders.items():
            synchronise(device)
            start = clock()
            call()
            synchronise(device)
            if turn >= warm:
                found[name].append(clock() - start)
    return found


def synchronise(device: torch.device) -> None:
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


def peak_during(call: Callable[[], object], device: torch.device) -> int:
    """Bytes at the peak of one call beyond those held before it; what the call returns is counted."""
    if device.type == "cuda":
        synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronise(device)
        return torch.cuda.max_memory_allocated(device) - before
    give_back_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status("VmRSS")
    except OSError:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    call()
    return max(0, _status("VmHWM") - before)


def give_back_freed_memory() -> None:
    """Freed memory that the C library still holds would hide what a call takes."""
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def limit_memory(nbytes: int) -> None:
    """Beyond so many bytes more than now, this process's allocations fail (Linux; elsewhere there is no limit)."""
    if (now := _status("VmData")) > 0:
        resource.setrlimit(resource.RLIMIT_DATA, (now + nbytes, resource.RLIM_INFINITY))


def _status(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if field == "VmHWM" else 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


def available_memory() -> int:
    """Bytes that a new process could take now."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 8 << 30


class Nvml:
    """Energy, clock and temperature of a CUDA device, where NVML can be asked; else nothing."""

    def __init__(self, device: torch.device) -> None:
        self.handle = None
        if device.type != "cuda":
            return
        try:
            import pynvml

            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            self.handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
            self.nvml = pynvml
        except Exception as error:  # no NVML, no right to it, a device that it does not know: figures stay empty
            print(f"no energy figures: {error}", flush=True)

    def during(self, call: Callable[[], object], device: torch.device, seconds: float = 0.5) -> dict[str, str]:
        """Joules a call, and clock (MHz) and temperature (C) right after `seconds` of calls."""
        if self.handle is None:
            return {}
        try:
            synchronise(device)
            before = self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)
            calls, began = 0, time.perf_counter()
            while time.perf_counter() - began < seconds or calls < 3:
                call()
                calls += 1
                if calls % 16 == 0:
                    synchronise(device)
            synchronise(device)
            joules = (self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle) - before) / 1000 / calls
            clock = self.nvml.nvmlDeviceGetClockInfo(self.handle, self.nvml.NVML_CLOCK_SM)
            celsius = self.nvml.nvmlDeviceGetTemperature(self.handle, self.nvml.NVML_TEMPERATURE_GPU)
        except self.nvml.NVMLError:
            return {}
        return {"joules": f"{joules:.4g}", "clock_mhz": str(clock), "celsius": str(celsius)}
