"""Drawn problems, the truth in float64, and the tolerance for comparing with it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from adcorre import adcorre_terms, plain, torch_backend
from adcorre.backends import Options, resolve_options

LINEAR = ("numba", "torch") if find_spec("numba") else ("torch",)  # the linear backends on a CPU
TARGETS = (-1, "simplex", 0, 0.3, 1)


class Problem(NamedTuple):
    x: Tensor  # (n, k, d) float64
    targets: Tensor  # (n,)
    attention: Tensor  # (C,)
    upstream: Tensor  # (3,), of fd, md, ed
    options: dict


def draw(
    n: int,
    k: int,
    d: int,
    num_classes: int,
    *,
    seed: int = 0,
    between: float | str = -1,
    mean: float | str = -1,
    embedding: float | str = -1,
    shift: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """Vectors with |x - mean| in sqrt(d) [0.5, 2] and means of their own, labels, weights and upstream gradients.

    With |shift| <= 300 every |x - mean| is above 1e-3 |x|, where float64's rounding leaves 1e-12 to compare.
    """
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, k, d, generator=rng, dtype=torch.float64)
    x = x - x.mean(-1, keepdim=True)
    length = (0.5 + 1.5 * torch.rand(n, k, 1, generator=rng, dtype=torch.float64)) * d**0.5
    x = (x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)).nan_to_num() * length  # d = 1: constant
    targets = torch.randint(0, num_classes, (n,), generator=rng)
    attention = torch.rand(num_classes, generator=rng, dtype=torch.float64)
    upstream = torch.randn(3, generator=rng, dtype=torch.float64)
    x = x + shift + 0.5 * torch.randn(n, k, 1, generator=rng, dtype=torch.float64)
    options = {"between_target": between, "mean_target": mean, "embedding_target": embedding}
    return Problem(x.to(dtype), targets, attention.to(dtype), upstream.to(dtype), options)


def run(problem: Problem, backend: str, x: Tensor | None = None, **overrides: object) -> tuple[Tensor, Tensor]:
    """(values (3,), dL/dx) under the problem's upstream gradients; backend "plain" is torch's path off the CPU."""
    x = (problem.x if x is None else x).detach().requires_grad_()
    options = {**problem.options, **overrides}
    if backend == "plain":
        return _run_plain(problem, x, options)
    terms = torch.stack(adcorre_terms(x, problem.targets, problem.attention, backend=backend, **options))
    (gradient,) = torch.autograd.grad((terms * problem.upstream.to(terms.dtype)).sum(), x)
    return terms.detach(), gradient


def _run_plain(problem: Problem, x: Tensor, options: dict) -> tuple[Tensor, Tensor]:
    resolved: Options = resolve_options(
        x,
        problem.attention.shape[0],
        "torch",
        options["between_target"],
        options["mean_target"],
        options["embedding_target"],
        options.get("ignore_index", -100),
    )
    flat = plain.plain_statistics(
        x.detach(), problem.targets, problem.attention.shape[0], resolved.ignore_index, resolved.embedding_target
    )
    values, *tables = torch_backend.terms(
        flat, problem.attention, *x.shape[1:], resolved.between_target, resolved.mean_target, resolved.embedding_target
    )
    scaled = [up * table for up, table in zip(problem.upstream.to(flat.dtype), tables, strict=True)]
    gradient = plain.plain_gradient(
        x.detach(), problem.targets, *scaled, resolved.ignore_index, resolved.embedding_target
    )
    return values[:3], gradient


def gradient_scale(problem: Problem, **overrides: object) -> Tensor:
    """|g| / |x - mean| per vector, (n, k, 1): dL/dx before the projections, against which rounding is measured.

    Some true gradients are zero (one sample, one vector, one class, d = 2); what is projected away to get there is not.
    """
    options = {**problem.options, **overrides}
    x, num_classes = problem.x.double(), problem.attention.shape[0]
    inside = (problem.targets >= 0) & (problem.targets < num_classes)
    if "ignore_index" in options:
        inside &= problem.targets != options["ignore_index"]
    centred = x - x.mean(-1, keepdim=True)
    length = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    z = (centred / length).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    labels = problem.targets.clamp(0, num_classes - 1)
    zeros = torch.zeros(num_classes, *x.shape[1:], dtype=x.dtype)
    statistics = zeros.index_add(0, labels[inside], z[inside])
    means = zeros.index_add(0, labels[inside], centred[inside])
    count = torch.bincount(labels[inside], minlength=num_classes)
    n, k = int(inside.sum().clamp(min=1)), x.shape[1]
    w, upstream = problem.attention.double(), problem.upstream.double().abs()
    s_norm = torch.linalg.vector_norm(statistics, dim=-1, keepdim=True)
    pull = 4 * w[:, None, None] * s_norm + 2 * ((w[:, None] + w)[:, :, None, None] * s_norm).sum(1)
    ed = 2 / (n * k * k) * torch.linalg.vector_norm(z.sum(1, keepdim=True), dim=-1, keepdim=True)
    if options["embedding_target"] != -1:
        ed = ed.new_full((), 2 * (k - 1) / (n * k * k))
    scale = (upstream[0] * pull[labels] / (k * n * n) + upstream[2] * ed) / length
    mean_length = torch.linalg.vector_norm(means, dim=-1, keepdim=True)
    md = upstream[1] * 2 * (count > 0).sum() / (k * num_classes**2) / mean_length
    # Class means are not drawn: where vectors cancel, their mean keeps fewer than the 1e-3 that vectors are drawn with.
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    norm_sum = x.new_zeros(num_classes, k, 1).index_add(0, labels[inside], norms[inside])
    md = md * (1e-3 * norm_sum / mean_length).clamp(min=1)
    scale = (scale + md[labels]).nan_to_num(nan=0.0, posinf=0.0)
    return torch.where(inside[:, None, None], scale, 0)


def assert_close(
    problem: Problem, got: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor], **overrides: object
) -> None:
    """1e-12 in float64: values against their size 1, gradients against what is projected away as well."""
    for name, value, expected in zip(("fd", "md", "ed"), got[0], truth[0], strict=True):
        assert abs(value - expected) <= 1e-12 * max(abs(expected), 1.0), f"{name}: {value} against {expected}"
    allowed = 1e-12 * torch.maximum(truth[1].abs(), gradient_scale(problem, **overrides))
    excess = (got[1] - truth[1]).abs() - allowed
    if excess.numel() and not bool((excess <= 0).all()):
        worst = divmod(int(excess.nan_to_num(nan=torch.inf).argmax()), excess[0].numel())
        raise AssertionError(
            f"gradient of sample {worst[0]}, entry {worst[1]}: {got[1].flatten(1)[worst]} "
            f"against {truth[1].flatten(1)[worst]}, allowed {allowed.flatten(1)[worst]}"
        )
