"""The parts of `python -m bench gpu` that look at FD over every pair of samples (`pairs="sample"`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adcorre import adcorre_terms
from bench.gpu_parts import DTYPES, Bench, Failed, repeat, step

PRECISIONS = ("highest", "high", "medium")
UNIT = {"highest": 2.0**-20, "high": 2.0**-15, "medium": 2.0**-7}  # of a correlation


def pairs_agree(bench: Bench) -> None:
    """Values and gradients over all pairs against the reference in float64; at -1 against the linear form too."""
    for dtype in ("float32", "bfloat16"):
        for precision in PRECISIONS:
            for target in (-1.0, -1 / 6, 0.0):
                for n in bench.sizes(600, 61, toy=1):
                    x, targets, attention = _away_from_kinks(bench, n, dtype)
                    term_targets: dict[str, Any] = {"between_target": target, "pairs": "sample"}
                    exact = x.detach().double().requires_grad_()
                    truth, true_gradient = _fd(exact, targets, attention.double(), "reference", **term_targets)
                    fd, gradient = _fd(x, targets, attention, "triton", precision=precision, **term_targets)
                    error = float((fd.double() - truth).abs() / truth)
                    allowed = UNIT[precision]
                    case = f"{precision}, target {target:.3f}"
                    bench.row(case, "error of FD", f"{error:.2e}", n=n, dtype=dtype)
                    off = float((gradient.double() - true_gradient).abs().max() / true_gradient.abs().max())
                    bench.row(case, "largest error of dFD/dx", f"{off:.2e}", n=n, dtype=dtype)
                    if not error < allowed:
                        raise Failed(f"FD in {dtype}, {case}, n = {n}: off by {error:.2e} of it")
                    if not off < 8 * max(allowed, torch.finfo(DTYPES[dtype]).eps):
                        raise Failed(f"dFD/dx in {dtype}, {case}, n = {n}: off by {off:.2e} of its largest entry")
                    if target == -1:
                        linear, _ = _fd(x, targets, attention, "triton")
                        apart = float((fd - linear).abs() / linear)
                        bench.row(case, "apart from the linear form", f"{apart:.2e}", n=n, dtype=dtype)
                        if not apart < allowed:
                            raise Failed(f"FD in {dtype}, {case}, n = {n}: {apart:.2e} apart from the linear form")


def _away_from_kinks(bench: Bench, n: int, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of which no correlation is so near a target that half a product's precision could turn its sign."""
    x, targets, attention = bench.inputs(n, dtype)
    side = torch.where(torch.arange(n, device=x.device) % 3 == 0, -1.0, 1.0)[:, None, None]
    ramp = torch.linspace(-2, 2, x.shape[2], device=x.device)
    with torch.no_grad():
        x.copy_(0.3 * x + side * ramp)
    return x, targets, attention


def _fd(x: Tensor, targets: Tensor, attention: Tensor, backend: str, **options: Any) -> tuple[Tensor, Tensor]:
    fd = adcorre_terms(x, targets, attention, backend=backend, validate=False, **options).fd
    return fd.detach(), torch.autograd.grad(fd, x)[0]


def pairs_rate(bench: Bench) -> None:
    """FD over all pairs, counted as 2 k n^2 d operations, beside a large matrix product's rate."""
    size = 64 if bench.toy else 8192
    a, b = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    calls: dict[str, Callable[[], object]] = {"product": partial(torch.matmul, a, b)}
    product = 2 * size**3 / bench.seconds(calls, runs=20, batch=3, n=size, dtype="bfloat16")["product"]
    bench.row("product", "rate", f"{product:.3e}", "FLOP/s", n=size, dtype="bfloat16")
    del a, b
    for precision in PRECISIONS:
        for n in bench.sizes(16_384, 65_536):
            if precision != "medium" and n > 20_000:
                continue
            dtype, aim = ("bfloat16", ">= 0.6") if precision == "medium" else ("float32", "")
            data, case = bench.inputs(n, dtype), f"pairs, {precision}"
            options: dict[str, Any] = {"pairs": "sample", "precision": precision, "between_target": "simplex"}
            calls = {
                f"{case}, forward": partial(_forward, *data, **options),
                f"{case}, forward + backward": partial(step, *data, "triton", **options),
            }
            forward = bench.seconds(calls, runs=5, n=n, dtype=dtype)[f"{case}, forward"]
            rate = 2 * bench.shape["k"] * n**2 * bench.shape["d"] / forward
            bench.row(case, "rate", f"{rate:.3e}", "FLOP/s", n=n, dtype=dtype)
            bench.row(case, "share of a product's rate", f"{rate / product:.3f}", n=n, dtype=dtype, target=aim)


@torch.no_grad()
def _forward(x: Tensor, targets: Tensor, attention: Tensor, **options: Any) -> Tensor:
    return adcorre_terms(x.detach(), targets, attention, backend="triton", validate=False, **options).fd


def pairs_rivals(bench: Bench) -> None:
    """Forward + backward over all pairs against the eager reference where that fits, and where it does not."""
    options: dict[str, Any] = {"pairs": "sample", "between_target": "simplex"}
    for n in bench.sizes(4_096, 16_384, 32_768, toy=1):
        x, targets, attention = bench.inputs(n, "bfloat16")
        triton_step = partial(step, x, targets, attention, "triton", precision="medium", **options)
        calls: dict[str, Callable[[], object]] = {"pairs, ours": triton_step}
        with_reference = n < 20_000
        if with_reference:
            calls["pairs, reference"] = partial(step, x, targets, attention, "reference", **options)
        elif not bench.toy:
            wall = False
            try:
                step(x, targets, attention, "reference", **options)
            except torch.OutOfMemoryError:
                wall = True
            torch.cuda.empty_cache()
            bench.row("reference", "ran out of memory", wall, n=n, dtype="bfloat16")
        times = bench.seconds(calls, runs=3, n=n, dtype="bfloat16")
        if with_reference:
            ratio = times["pairs, reference"] / times["pairs, ours"]
            case = "pairs, forward + backward"
            bench.row(case, "times faster than reference", f"{ratio:.1f}", n=n, dtype="bfloat16", target=">= 10")
        del calls, triton_step


def pairs_memory(bench: Bench) -> None:
    """Peak memory beyond the inputs and dL/dx over all pairs of 131,072 samples."""
    if bench.needs_cuda():
        return
    for dtype, precision in (("bfloat16", "medium"), ("float32", "highest")):
        x, targets, attention = bench.inputs(131_072 if dtype == "bfloat16" else 32_768, dtype)
        options: dict[str, Any] = {"pairs": "sample", "precision": precision, "between_target": "simplex"}
        call = partial(step, x, targets, attention, "triton", **options)
        case, about = f"pairs, {precision}", dict[str, Any](n=len(x), dtype=dtype)
        extra = f"{bench.peak_mib(call, x):.1f}"
        bench.seconds({f"{case}, forward + backward": call}, runs=2, **about)
        bench.row(case, "peak beyond inputs and dL/dx", extra, "MiB", **about, target="<= 4096")


def pairs_determinism(bench: Bench) -> None:
    """Five runs over all pairs, forward and backward, bit by bit."""
    for precision in PRECISIONS:
        for n in bench.sizes(700, 16_384, toy=1):
            options = {"pairs": "sample", "precision": precision, "between_target": "simplex"}
            repeat(bench, f"five runs, {precision}", n, "float32", 5, **options)


PARTS: dict[str, Callable[[Bench], None]] = {
    part.__name__.replace("_", "-"): part
    for part in (pairs_agree, pairs_determinism, pairs_rate, pairs_rivals, pairs_memory)
}
