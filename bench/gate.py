"""`python -m bench gate`: compare measurements that do not depend on a busy machine with their limits.

Ratios are of processor time on one thread, the minimum over each contender's turns within one run. A ratio beyond its
limit is measured again, at most twice: other work on the machine slows down some turns, a slower program all of them.
Operations, launches, registers and instructions are exact. The limits are in bench/gate.csv, each with the figure that
it was set from; `--update` measures the figures again and keeps the limits. Exit status 1 if a limit is exceeded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from adcorre import AdCorreLoss
from bench import host, measure, rows
from bench.loss import Shape, Step, make_inputs
from bench.rivals import CONTENDERS

LIMITS = Path(__file__).parent / "gate.csv"
FIELDS = ("check", "figure", "sign", "limit", "about")
CPU = torch.device("cpu")


def step_of(name: str, n: int, seed: int) -> Step:
    x, targets, attention = make_inputs(Shape(n=n), CPU, seed)
    return Step(CONTENDERS[name], [x], targets, attention)


def least(turns: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of processor time of each contender's fastest turn."""
    times = measure.in_turns(turns, CPU, seconds=4, most=9, clock=time.process_time)
    return {name: min(own) for name, own in times.items()}


def times_faster_than_reference(backend: str, seed: int) -> float:
    times = least({name: step_of(name, 1024, seed) for name in (backend, "reference")})
    return times["reference"] / times[backend]


def growth_per_sample(backend: str, seed: int) -> float:
    times = least({str(n): step_of(backend, n, seed) for n in (16384, 65536)})
    return times["65536"] / times["16384"] / 4


def copies(backend: str, seed: int) -> float:
    step = step_of(backend, 4096, seed)
    x = next(step.inputs).detach()
    target = torch.empty_like(x)
    times = least({"copy": lambda: target.copy_(x), "ours": step})
    return times["ours"] / times["copy"]


def operations(backend: str, n: int, seed: int) -> float:
    return host.count(step_of(backend, n, seed)).aten


def operations_of_the_loss(backend: str, n: int, seed: int) -> float:
    x, targets, _ = make_inputs(Shape(n=n), CPU, seed)
    logits, loss = torch.randn(n, 7, requires_grad=True), AdCorreLoss(7, backend=backend)
    return host.count(lambda: torch.autograd.grad(loss(logits, x, targets).loss, (logits, x))).aten


def extra_memory(backend: str, seed: int) -> float:
    step = step_of(backend, 16384, seed)
    step()
    size = 16384 * 7 * 256 * 4
    return max(0, measure.peak_during(step, CPU) - size) / 2**20


def of_a_step(name: str, field: str, seed: int, n: int = 60) -> float:
    """A figure of `host.Counts` of one step on a GPU, of the terms or of the loss."""
    with host.no_launches() as names:
        return getattr(host.count(host.steps(n, seed)[name], names), field)


def small_operations(name: str, seed: int) -> float:
    return host.measure_host(60, seed)[name][2]


@cache
def static_rows() -> list[Any]:
    from bench.static import rows_of

    return rows_of("paper", "float32", "sm_90")


def beyond_the_static_table(seed: int) -> float:
    from bench.static import complaints, limits

    allowed = limits()
    return len([words for row in static_rows() for words in complaints(row, allowed["paper", row.kernel])])


def instructions(kernel: str) -> Callable[[int], float]:
    return lambda seed: next(float(row.loop_instructions or 0) for row in static_rows() if kernel in row.kernel)


RATIOS: dict[str, Callable[[int], float]] = {
    "numba: times faster than the reference, n = 1,024": partial(times_faster_than_reference, "numba"),
    "numba: copies of x in the time of a step, n = 4,096": partial(copies, "numba"),
    "times faster than the reference, n = 1,024": partial(times_faster_than_reference, "torch"),
    "time per sample, n = 65,536 over 16,384": partial(growth_per_sample, "torch"),
    "copies of x in the time of a step, n = 4,096": partial(copies, "torch"),
}
RATIOS |= {
    f"host: small operations in the time of a step, {name}": partial(small_operations, name)
    for name in ("terms", "loss")
}
EXACT: dict[str, Callable[[int], float]] = {
    "numba: ATen operations, n = 60": partial(operations, "numba", 60),
    "numba: ATen operations of the whole loss, n = 60": partial(operations_of_the_loss, "numba", 60),
    "numba: MiB beyond x and dL/dx, n = 16,384": partial(extra_memory, "numba"),
    "ATen operations, n = 4,096": partial(operations, "torch", 4096),
    "MiB beyond x and dL/dx, n = 16,384": partial(extra_memory, "torch"),
    "launches of a step on a GPU, n = 4,096": partial(of_a_step, "terms", "launches", n=4096),
    "findings against bench/limits.csv, paper, sm_90": beyond_the_static_table,
    "statistics, sm_90: instructions in the loop": instructions("statistics"),
    "gradient, sm_90: instructions in the loop": instructions("gradient"),
}
EXACT |= {
    f"host: {field} of a step, {name}": partial(of_a_step, name, field)
    for name in ("terms", "loss")
    for field in ("calls", "allocations", "launches")
}
CHECKS = RATIOS | EXACT


def main(argv: list[str] | None = None) -> int:
    parser = rows.parser("gate", __doc__)
    parser.add_argument("--only", help="checks whose name contains this text; default: all")
    parser.add_argument("--update", action="store_true", help="write the measured figures next to the limits")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0, help="seed of the inputs")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    limits: list[dict[str, Any]] = [dict(row) for row in rows.read(LIMITS)]
    failed = 0
    for row in limits:
        if options.only and options.only not in row["check"]:
            continue
        for _ in range(3 if row["check"] in RATIOS else 1):
            figure = CHECKS[row["check"]](options.seed)
            wrong = rows.beyond(figure, row["sign"], float(row["limit"]))
            if not wrong:
                break
        failed += wrong
        verdict = "BEYOND ITS LIMIT" if wrong else "ok"
        print(f"{row['check']:48} {figure:10.4g}  {row['sign']} {row['limit']:>8}  {verdict}", flush=True)
        if options.update:
            row["figure"] = f"{figure:.4g}"
    if options.update:
        LIMITS.unlink()
        rows.append(LIMITS, FIELDS, limits)
    return 1 if failed else 0
