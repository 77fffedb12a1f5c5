"""Random logits, and a comparison of the kernels over them with PyTorch's cross-entropy and argmax."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from adcorre_kernels import gpu
from tests.kernels.launched import tools


def draw(n: int, num_classes: int, dtype: torch.dtype, *, ignored: bool = True, seed: int = 0) -> tuple[Tensor, ...]:
    """Logits, targets, class weights (one of them zero), and a logit adjustment."""
    rng = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(n, num_classes, generator=rng, dtype=torch.float64)
    targets = torch.randint(0, num_classes, (n,), generator=rng)
    weight = torch.rand(num_classes, generator=rng, dtype=torch.float64) + 0.1
    if num_classes > 2:
        weight[1] = 0
    adjustment = torch.randn(num_classes, generator=rng, dtype=torch.float64)
    if ignored and n > 2:
        targets[::3] = -100
        logits[0] = torch.nan  # not read
    return tuple(t.to(tools.DEVICE) for t in (logits.to(dtype), targets, weight.float(), adjustment.float()))


def compare(
    logits: Tensor, targets: Tensor, weight: Tensor | None, adjustment: Tensor | None, smoothing: float
) -> None:
    """Sums, counts and gradient are about as close to float64 as PyTorch's in the working dtype."""
    num_classes, valid = logits.shape[1], targets != -100
    counts, ce = gpu.logits_sums(logits, targets, weight, adjustment, smoothing, -100)
    upstream = torch.tensor(0.37, device=tools.DEVICE, dtype=ce.dtype)
    gradient = gpu.logits_gradient(logits, targets, upstream, weight, adjustment, smoothing, -100)

    def plain(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        own = logits.detach().to(dtype).where(valid[:, None], 0).requires_grad_()
        scores = own if adjustment is None else own + adjustment.to(dtype)
        w = None if weight is None else weight.to(dtype)
        total = cross_entropy(scores, targets, w, reduction="sum", label_smoothing=smoothing)
        return total.detach(), torch.autograd.grad(total, own, upstream.to(dtype))[0]

    truth, in_float = plain(torch.float64), plain(ce.dtype)
    eps = torch.finfo(ce.dtype).eps
    ce_allowed = 2 * (in_float[0] - truth[0]).abs() + 8 * eps * (truth[0] + len(logits))
    assert bool((ce[0].double() - truth[0]).abs() <= ce_allowed)
    used = torch.ones(num_classes, device=tools.DEVICE) if weight is None else weight
    torch.testing.assert_close(ce[1].double(), used.double()[targets[valid]].sum(), rtol=4 * eps, atol=0)
    half = torch.finfo(logits.dtype)
    allowed = (
        2 * (in_float[1] - truth[1]).abs()
        + 16 * eps
        + (2.02 if tools.INTERPRETED else 1.01) * half.eps / 2 * (truth[1].abs() if logits.dtype.itemsize == 2 else 0)
    )
    assert gradient.dtype == logits.dtype
    assert gradient.is_contiguous()
    assert bool(((gradient.double() - truth[1]).abs() <= allowed).all())
    predicted = torch.bincount(targets[valid & (logits.argmax(1) == targets)], minlength=num_classes)
    assert torch.equal(counts, torch.stack((predicted, torch.bincount(targets[valid], minlength=num_classes))))
