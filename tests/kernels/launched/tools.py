"""Random inputs on the device under test, and the error budget."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from adcorre import adcorre_terms, torch_backend
from adcorre.backends import resolve_options
from adcorre_kernels import gpu
from tests.loss.tools import Problem, draw, gradient_scale
from tests.loss.tools import run as run_on_cpu

DEVICE = torch.device(os.environ.get("ADCORRE_DEVICE", "cpu"))
INTERPRETED = DEVICE.type == "cpu"


def launch(problem: Problem, x: Tensor, **overrides: object) -> tuple[Tensor, Tensor]:
    """(values (3,), dL/dx) on the CPU, computed by the kernels on DEVICE; x keeps its strides."""
    options = {**problem.options, "ignore_index": -100, **overrides}
    x = x.detach().requires_grad_()
    values = torch.stack(
        adcorre_terms(x, problem.targets.to(DEVICE), problem.attention.float().to(DEVICE), backend="triton", **options)
    )
    (gradient,) = torch.autograd.grad((values * problem.upstream.float().to(DEVICE)).sum(), x)
    assert gradient.is_contiguous()
    return values.detach().cpu(), gradient.cpu()


def rounded(problem: Problem, dtype: torch.dtype) -> tuple[Problem, Tensor]:
    """The inputs with x rounded to `dtype`, and that x on DEVICE."""
    x = problem.x.to(dtype)
    return problem._replace(x=x.double(), attention=problem.attention.float().double()), x.to(DEVICE)


def against_budget(
    problem: Problem, x: Tensor, got: tuple[Tensor, Tensor], **overrides: object
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Errors of the values and what is allowed; errors of the gradient, what is allowed, and the true gradient.

    Allowed: twice the error of the printed formulas in float32 on the same inputs, plus a little.
    """
    truth = run_on_cpu(problem, "reference", **overrides)
    plain = run_on_cpu(problem, "reference", x=problem.x.float(), **overrides)
    values, gradient = got
    assert values.dtype == torch.float32
    assert gradient.dtype == x.dtype
    assert gradient.shape == x.shape
    eps = torch.finfo(torch.float32).eps
    value_error = (values - truth[0]).abs()
    values_allowed = 2 * (plain[0] - truth[0]).abs() + 8 * eps
    half = torch.finfo(x.dtype)
    rounding = half.eps / 2 * truth[1].abs() + half.smallest_normal * half.eps
    if INTERPRETED and x.dtype == torch.bfloat16:
        rounding = rounding * 2  # the interpreter truncates to bfloat16, hardware rounds
    scale = gradient_scale(problem, **overrides)
    allowed = 2 * (plain[1] - truth[1]).abs().max() if gradient.numel() else torch.zeros(())
    allowed = allowed + 16 * eps * scale + 1.01 * rounding * (x.dtype != torch.float32)
    return value_error, values_allowed, (gradient.double() - truth[1]).abs(), allowed, truth[1]


def assert_within_budget(problem: Problem, x: Tensor, got: tuple[Tensor, Tensor], **overrides: object) -> None:
    """No further from float64 than `against_budget` allows."""
    value_error, values_allowed, error, allowed, truth = against_budget(problem, x, got, **overrides)
    assert bool((value_error <= values_allowed).all()), value_error / torch.finfo(torch.float32).eps
    gradient = got[1]
    excess = error - allowed
    if gradient.numel() and not bool((excess <= 0).all()):
        worst = int(excess.nan_to_num(nan=torch.inf).argmax())
        place = [int(i) for i in torch.unravel_index(torch.tensor(worst), excess.shape)]
        raise AssertionError(
            f"dx{place}: {gradient.flatten()[worst]} against {truth.flatten()[worst]}, "
            f"allowed {allowed.flatten()[worst]}, off by {error.flatten()[worst]}"
        )


def check(problem: Problem, dtype: torch.dtype = torch.float32, **overrides: object) -> tuple[Tensor, Tensor]:
    problem, x = rounded(problem, dtype)
    got = launch(problem, x, **overrides)
    assert_within_budget(problem, x, got, **overrides)
    return got


def steps(problem: Problem, x: Tensor, ignore_index: int = -100) -> tuple[Tensor, ...]:
    """flat, values, G, H, scale and dL/dx of the kernels' three steps, by hand."""
    num_classes, (_, k, d) = problem.attention.shape[0], x.shape
    options = resolve_options(x, num_classes, "triton", *problem.options.values(), ignore_index)
    targets = problem.targets.to(DEVICE)
    term_targets = (options.between_target, options.mean_target, options.embedding_target)
    flat = gpu.statistics(x, targets, num_classes, ignore_index, options.embedding_target)
    attention = problem.attention.float().to(DEVICE)
    of_terms = gpu if gpu.terms_supported(num_classes, k, d) else torch_backend
    values, feature, mean, scale = of_terms.terms(flat, attention, k, d, *term_targets)
    upstream = torch.cat((problem.upstream.float(), torch.zeros(1))).to(DEVICE)
    gradient = gpu.gradient(x, targets, upstream, feature, mean, scale, ignore_index, options.embedding_target)
    return flat, values, feature, mean, scale, gradient


__all__ = ["DEVICE", "INTERPRETED", "Problem", "assert_within_budget", "check", "draw", "launch", "rounded", "steps"]
