"""`python -m bench loss`: the three terms, forward and backward, against the reference, a device copy and its memory.

Times are medians over interleaved runs, so that a drift of the machine's speed meets every contender alike. Peak memory
is taken in a fresh process, after a warm-up call, beyond the inputs and dL/dx.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import adcorre
from adcorre import adcorre_terms

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results" / "loss.csv"
FIELDS = (
    "date", "commit", "device", "threads", "torch", "n", "k", "d", "classes", "dtype", "backend", "seconds", "p20",
    "p80", "copy_share", "times_faster_than_reference", "peak_extra_mib",
)  # fmt: skip


def make_inputs(options: argparse.Namespace, n: int) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator(options.device).manual_seed(options.seed)
    x = torch.empty(n, options.k, options.d, dtype=getattr(torch, options.dtype), device=options.device)
    x.normal_(generator=rng).requires_grad_()
    targets = torch.randint(0, options.classes, (n,), generator=rng, device=options.device)
    attention = torch.rand(options.classes, generator=rng, device=options.device)
    return x, targets, attention


def forward_backward(x: Tensor, targets: Tensor, attention: Tensor, backend: str) -> None:
    x.grad = None
    fd, md, ed = adcorre_terms(x, targets, attention, backend=backend)
    (fd + md + ed).backward()


def check(options: argparse.Namespace) -> None:
    """No time is printed before the backends agree with the reference in float64."""
    x, targets, attention = make_inputs(options, 200)
    truth = x.detach().double().requires_grad_()
    forward_backward(truth, targets, attention.double(), "reference")
    for backend in options.backends:
        forward_backward(x, targets, attention, backend)
        assert x.grad is not None
        assert truth.grad is not None
        error = float((x.grad.double() - truth.grad).abs().max() / truth.grad.abs().max())
        if not error < 8 * torch.finfo(x.dtype).eps:
            raise SystemExit(f"{backend}: gradient differs from the reference's by {error:.1e} of its largest entry")


def interleaved(contenders: dict[str, Callable[[], object]], runs: int, device: str) -> dict[str, list[float]]:
    """Seconds of each run; all contenders take a turn in every round, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(runs + 1):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure(options: argparse.Namespace, n: int, backends: list[str]) -> list[dict[str, Any]]:
    x, targets, attention = make_inputs(options, n)
    copy_from, copy_to = x.detach(), torch.empty_like(x)
    contenders: dict[str, Callable[[], object]] = {"copy": lambda: copy_to.copy_(copy_from)}
    for backend in backends:
        contenders[backend] = lambda backend=backend: forward_backward(x, targets, attention, backend)  # type: ignore[misc]
    seconds = interleaved(contenders, options.runs, options.device)
    # The least possible traffic is 3 n k d elements: x read twice, dL/dx written once. A copy moves 2 n k d.
    least = 1.5 * statistics.median(seconds["copy"])
    rows = []
    for backend in backends:
        own = sorted(seconds[backend])
        median = statistics.median(own)
        row = settings(options, n) | {
            "backend": backend,
            "seconds": f"{median:.6f}",
            "p20": f"{own[len(own) // 5]:.6f}",
            "p80": f"{own[len(own) * 4 // 5]:.6f}",
            "copy_share": f"{least / median:.4f}",
        }
        if "reference" in backends and backend != "reference":
            ratios = [slow / fast for slow, fast in zip(seconds["reference"], seconds[backend], strict=True)]
            row["times_faster_than_reference"] = f"{statistics.median(ratios):.1f}"
        if backend != "reference":
            row["peak_extra_mib"] = f"{peak_extra(options, n, backend) / 2**20:.1f}"
        rows.append(row)
    return rows


def settings(options: argparse.Namespace, n: int) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip() or adcorre.__version__,
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "n": n,
        "k": options.k,
        "d": options.d,
        "classes": options.classes,
        "dtype": options.dtype,
    }


def peak_extra(options: argparse.Namespace, n: int, backend: str) -> int:
    """Bytes beyond inputs and dL/dx at the peak of one call, in a fresh process after a warm-up call at n = 1,024."""
    given = json.dumps({**vars(options), "out": None, "n": n, "backend": backend})
    child = subprocess.run(
        [sys.executable, "-c", "import sys; from bench.loss import report_peak; report_peak(sys.argv[1])", given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(child.stdout)


def report_peak(given: str) -> None:
    options = argparse.Namespace(**json.loads(given))
    torch.set_num_threads(options.threads)
    forward_backward(*make_inputs(options, 1024), options.backend)
    x, targets, attention = make_inputs(options, options.n)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        forward_backward(x, targets, attention, options.backend)
        peak = torch.cuda.max_memory_allocated()
    else:
        before = _resident("VmRSS") if _reset_peak() else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        forward_backward(x, targets, attention, options.backend)
        peak = _resident("VmHWM")
    print(peak - before - x.numel() * x.element_size())


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def append_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench loss",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--n", type=int, nargs="+", default=[4096, 65536], help="batch sizes")
    parser.add_argument("--k", type=int, default=7, help="embedding vectors per sample")
    parser.add_argument("--d", type=int, default=256, help="entries per vector")
    parser.add_argument("--classes", type=int, default=7, help="number of classes")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16", "float64"), default="float32", help="of x"
    )
    parser.add_argument(
        "--backends", nargs="+", choices=("auto", "torch", "triton"), default=["torch"], help="what is timed"
    )
    parser.add_argument("--reference-up-to", type=int, default=4096, help="largest n at which the reference runs too")
    parser.add_argument("--runs", type=int, default=10, help="counted runs of each contender")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV file to which the rows are appended")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device is available")
    if min([*options.n, options.k, options.d, options.classes, options.runs, options.threads]) < 1:
        parser.error("--n, --k, --d, --classes, --runs and --threads: expected at least 1")
    return options


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    check(options)
    for n in options.n:
        backends = [*options.backends, *(["reference"] if n <= options.reference_up_to else [])]
        rows = measure(options, n, backends)
        append_rows(options.out, rows)
        for row in rows:
            parts = [f"n = {n}", row["backend"], f"{1e3 * float(row['seconds']):.2f} ms"]
            parts.append(f"{100 * float(row['copy_share']):.1f} % of a copy's bandwidth")
            if "times_faster_than_reference" in row:
                parts.append(f"{row['times_faster_than_reference']} times faster than the reference")
            if "peak_extra_mib" in row:
                parts.append(f"{row['peak_extra_mib']} MiB beyond inputs and dL/dx at the peak")
            print(", ".join(parts))
