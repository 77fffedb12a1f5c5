"""`python -m bench gate`: what must not get worse, checked where a noisy machine cannot hide it.

Ratios are of turns taken within one run; operations, launches, registers and instructions are exact. Limits stand in
bench/gate.csv, each with the figure that it was set from; `--update` measures the figures again and leaves the limits.
Exit status 1 if a figure is beyond its limit.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import measure
from bench.loss import Shape, Step, make_inputs
from bench.rivals import CONTENDERS

LIMITS = Path(__file__).parent / "gate.csv"
FIELDS = ("check", "figure", "sign", "limit", "about")
CPU = torch.device("cpu")


def step_of(name: str, n: int, seed: int) -> Step:
    x, targets, attention = make_inputs(Shape(n=n), CPU, seed)
    return Step(CONTENDERS[name], [x], targets, attention)


def times_faster_than_reference(seed: int) -> float:
    ours, reference = step_of("torch", 1024, seed), step_of("reference", 1024, seed)
    times = measure.in_turns({"ours": ours, "reference": reference}, CPU, seconds=3, most=7)
    return measure.ratio(times["reference"], times["ours"])


def growth_per_sample(seed: int) -> float:
    """Time per sample at n = 16,384 over that at n = 4,096."""
    turns = {str(n): step_of("torch", n, seed) for n in (4096, 16384)}
    times = measure.in_turns(turns, CPU, seconds=3, most=7)
    return min(times["16384"]) / min(times["4096"]) / 4


def copies(seed: int) -> float:
    """Forward and backward at n = 16,384 in the time of so many copies of x."""
    step = step_of("torch", 16384, seed)
    x = next(step.inputs).detach()
    target = torch.empty_like(x)
    times = measure.in_turns({"copy": lambda: target.copy_(x), "ours": step}, CPU, seconds=3, most=7)
    return statistics.median(times["ours"]) / statistics.median(times["copy"])


def operations(seed: int) -> float:
    """ATen operations of forward and backward at n = 4,096."""
    step = step_of("torch", 4096, seed)
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    return sum(event.name.startswith("aten::") for event in profile.events() or [])


def extra_memory(seed: int) -> float:
    """MiB beyond x and dL/dx at n = 16,384."""
    step = step_of("torch", 16384, seed)
    step()
    size = 16384 * 7 * 256 * 4
    return max(0, measure.peak_during(step, CPU) - size) / 2**20


def launches(seed: int) -> float:
    """Kernels of forward and backward at the paper's shape."""
    from bench.compiled import loss_launches

    return len(loss_launches(4096, 7, 256, 7, torch.float32, -1.0, -1.0, -1.0))


def compiled(name: str, figure: str) -> Callable[[int], float]:
    def check(seed: int) -> float:
        from bench.static import rows_of

        row = next(row for row in rows_of("paper", "float32", "sm_90") if row.kernel == name)
        return float(getattr(row, figure) or 0)

    return check


CHECKS: dict[str, Callable[[int], float]] = {
    "times faster than the reference, n = 1,024": times_faster_than_reference,
    "time per sample, n = 16,384 over 4,096": growth_per_sample,
    "copies of x in the time of a step, n = 16,384": copies,
    "ATen operations, n = 4,096": operations,
    "MiB beyond x and dL/dx, n = 16,384": extra_memory,
    "launches": launches,
    "statistics, sm_90: registers": compiled("narrow_statistics", "registers"),
    "statistics, sm_90: instructions in the loop": compiled("narrow_statistics", "loop_instructions"),
    "gradient, sm_90: registers": compiled("narrow_gradient", "registers"),
    "gradient, sm_90: instructions in the loop": compiled("narrow_gradient", "loop_instructions"),
}


def beyond(figure: float, sign: str, limit: float) -> bool:
    return figure < limit if sign == ">=" else figure > limit


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench gate", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--only", help="checks whose name contains this text")
    parser.add_argument("--update", action="store_true", help="write the figures measured now beside the limits")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", choices=("cpu",), default="cpu", help="where to run; GPUs have bench gpu")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = [dict(row) for row in measure.read(LIMITS)]
    failed = 0
    for row in rows:
        if options.only and options.only not in row["check"]:
            continue
        figure = CHECKS[row["check"]](options.seed)
        wrong = beyond(figure, row["sign"], float(row["limit"]))
        failed += wrong
        verdict = "BEYOND ITS LIMIT" if wrong else "ok"
        print(f"{row['check']:48} {figure:10.4g}  {row['sign']} {row['limit']:>8}  {verdict}", flush=True)
        if options.update:
            row["figure"] = f"{figure:.4g}"
    if options.update:
        LIMITS.unlink()
        measure.append(LIMITS, FIELDS, rows)
    return 1 if failed else 0
