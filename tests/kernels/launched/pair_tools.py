"""Random inputs for FD over all pairs, its exact values from n x n matrices in float64, and error budgets."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from adcorre_kernels.gpu import pair_launch
from tests.kernels.launched import tools

PRECISIONS = ("highest", "high", "medium")
# Error of a product of two entries of z: both factors are rounded, and their rounding errors multiply.
UNIT = {"highest": 2.0**-21, "high": 2.0**-16, "medium": 2.0**-7.5}
# Larger where the interpreter truncates to bfloat16: twice for one piece, four times for two, all in one direction.
TRUNCATED = {"highest": 1, "high": 12, "medium": 2}


class Pairs(NamedTuple):
    x: Tensor  # (n, k, d), the shape passed to the kernels
    targets: Tensor
    attention: Tensor
    target: float
    complete: bool = False
    ignore_index: int = -100


class Truth(NamedTuple):
    """values (2,) and their rounding (2,) per unit; gradient (n, k, d) of the first, and its rounding per unit."""

    values: Tensor
    value_unit: Tensor
    gradient: Tensor
    gradient_unit: Tensor
    nearest: float  # the smallest |c - Phi| among the pairs in the sum


def draw_pairs(n: int, k: int, d: int, num_classes: int, target: float, complete: bool = False, seed: int = 0) -> Pairs:
    """No correlation near the target or 1, but some on either side: two opposite bundles of vectors, plus noise."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    side = torch.where(torch.arange(n) % 3 == 0, -1.0, 1.0).double()[:, None, None]
    noise = (0.7 if d >= 16 else 0.2) * normal(n, k, d)
    x = (side * (normal(k, d) + torch.linspace(-2, 2, d)) + noise) * (1 + normal(n, k, 1).abs()) + 0.5
    targets = torch.randint(num_classes, (n,), generator=generator)
    attention = torch.rand(num_classes, generator=generator, dtype=torch.float64) + 0.01
    return Pairs(x.float(), targets, attention.float(), target, complete)


def truth_of(problem: Pairs, dtype: torch.dtype = torch.float64, rows: slice = slice(None)) -> Truth:
    """The sums of Eq. 9 as printed, without factoring, and their gradient by autograd."""
    x = problem.x.detach().to(dtype).requires_grad_()
    targets, num_classes = problem.targets, problem.attention.shape[0]
    takes_part = (targets >= 0) & (targets < num_classes) & (targets != problem.ignore_index)
    centred = x - x.mean(-1, keepdim=True)
    length = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    constant = length <= 32 * torch.finfo(torch.float32).eps * norm
    z = torch.where(constant, 0, centred / torch.where(constant, 1, length))
    z = torch.where(takes_part[:, None, None], z, 0)
    c = torch.einsum("ild,jld->lij", z, z)
    same = targets[:, None] == targets
    pairs = takes_part[:, None] & takes_part & ~torch.eye(len(x), dtype=torch.bool)
    if not problem.complete:
        pairs = pairs & ~same
    w = torch.where(takes_part, problem.attention.to(dtype)[targets.clamp(0, num_classes - 1)], 0)
    omega = w[:, None] + w
    excess = c - torch.where(same, 1.0, problem.target).to(dtype)
    deviation = torch.where(pairs, excess.abs(), 0)
    weighted = omega * deviation
    (gradient,) = torch.autograd.grad(weighted.sum(), x)
    size = z.detach().abs()
    products = torch.where(pairs, torch.einsum("ild,jld->lij", size, size), 0)
    pull = 2 * torch.einsum("lij,jld->ild", torch.where(pairs, omega, 0).expand(len(c), -1, -1), size)
    pull = pull + size * (pull * size).sum(-1, keepdim=True)
    gradient_unit = torch.where(constant, 0, pull / torch.where(constant, 1, length))
    return Truth(
        torch.stack((weighted[:, rows].sum(), deviation[:, rows].sum())).detach(),
        torch.stack(((omega * products)[:, rows].sum(), products[:, rows].sum())).detach(),
        gradient[rows].detach(),
        gradient_unit[rows].detach(),
        float(excess.detach().abs()[:, pairs].min()) if pairs.any() else 1.0,
    )


def launch_pairs(
    problem: Pairs, precision: str, scale: float = 1.0, rows: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """(values (2,), scale times the gradient) on the CPU, computed by the kernels."""
    x, targets, attention = (part.to(tools.DEVICE) for part in problem[:3])
    options = (problem.target, problem.ignore_index, precision, *(rows or (0, len(x))), problem.complete)
    values = pair_launch.pair_values(x, targets, attention, *options)
    upstream = torch.tensor(scale, device=x.device)
    gradient = pair_launch.pair_gradient(x, targets, attention, upstream, *options)
    assert values.dtype == gradient.dtype == torch.float32
    assert gradient.is_contiguous()
    return values.cpu(), gradient.cpu()


def assert_values_within_budget(truth: Truth, precision: str, values: Tensor) -> None:
    """The error is at most what rounding the factors to the precision, and float32, can cause."""
    error = (values - truth.values).abs()
    allowed = unit_of(precision) * truth.value_unit + 2 * torch.finfo(torch.float32).eps * truth.values
    assert bool((error <= allowed).all()), f"values {values.tolist()}: off by {(error / allowed).tolist()} budgets"


def unit_of(precision: str) -> float:
    return UNIT[precision] * (TRUNCATED[precision] if tools.INTERPRETED else 1)


def assert_pairs_within_budget(
    problem: Pairs, precision: str, got: tuple[Tensor, Tensor], rows: slice = slice(None)
) -> None:
    """Check values and gradient; the inputs are such that rounding changes no sign."""
    truth = truth_of(problem, rows=rows)
    unit, eps = unit_of(precision), torch.finfo(torch.float32).eps
    assert_values_within_budget(truth, precision, got[0])
    assert truth.nearest > 2 * unit, f"a correlation within {truth.nearest} of its target: its sign may be either"
    error = (got[1] - truth.gradient).abs()
    # Sums of a few hundred terms round, whatever is summed; what is projected away is part of the size. A GPU's rsqrt,
    # which enters twice, is within an ulp.
    floor = (4 if tools.INTERPRETED else 6) * eps * truth.gradient_unit.amax(-1, keepdim=True)
    ratio = torch.nan_to_num(error / (unit * truth.gradient_unit + floor + 1e-30), nan=torch.inf)
    assert got[1].shape == truth.gradient.shape
    if ratio.numel():
        assert float(ratio.max()) <= 1, f"gradient off by {float(ratio.max())} budgets"
