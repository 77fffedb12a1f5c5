"""What a user would pick for a pair loss, each as one call from embeddings to a loss with its graph.

A contender is made once per process and shape, and takes x (n, k, d), targets (n,) and attention (C,). Those of
pytorch-metric-learning see the same embeddings as (n, k d), with that library's own defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adcorre import adcorre_terms
from adcorre.checks import STATISTICS_DTYPE

Call = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Contender:
    """`growth`: the power of n by which time and memory grow, with which the next size is estimated before it is tried.

    `same`: it computes FD + MD + ED, so that its gradient is held against the reference's before it is timed.
    `package`: what has to be installed beside PyTorch. `sizes`: the only n to try, where each is compiled anew.
    """

    make: Callable[[], Call]
    growth: int
    same: bool = True
    gradient: bool = True
    package: str = ""
    sizes: tuple[int, ...] = ()


def _terms(backend: str, **options: Any) -> Callable[[], Call]:
    def call(x: Tensor, targets: Tensor, attention: Tensor) -> Tensor:
        return sum(adcorre_terms(x, targets, attention, backend=backend, validate=False, **options))  # type: ignore[return-value]

    return lambda: call


def _compiled(make: Callable[[], Call]) -> Callable[[], Call]:
    def compiled() -> Call:
        torch.compiler.reset()  # else, after a few shapes, Dynamo would go on in eager mode and say so only in its log
        return torch.compile(make(), dynamic=False)

    return compiled


def factored(x: Tensor, targets: Tensor, attention: Tensor) -> Tensor:
    """FD + MD + ED in their linear form, whole tensors under autograd: the factorisation and nothing else."""
    x = x.to(STATISTICS_DTYPE[x.dtype])
    n, k, _ = x.shape
    classes = attention.shape[0]
    one_hot = torch.nn.functional.one_hot(targets, classes).to(x.dtype)
    count = one_hot.sum(0)
    centred = x - x.mean(-1, keepdim=True)
    z = centred * centred.square().sum(-1, keepdim=True).rsqrt()
    s = (one_hot.T @ z.flatten(1)).view(classes, k, -1)
    w = attention.to(x.dtype)[:, None, None]
    total, weighted = s.sum(0), (w * s).sum(0)
    weights = (attention * count).sum()
    fd = (2 * k * n * weights - 4 * (w * s * s).sum() + 2 * (total * weighted).sum()) / (k * n**2)
    mean = (one_hot.T @ centred.flatten(1)).view(classes, k, -1)
    present = (count > 0).to(x.dtype)[:, None, None]
    direction = mean * (mean.square().sum(-1, keepdim=True) + (1 - present)).rsqrt()
    p = present.sum()
    md = (k * p * (p - 1) + direction.sum(0).square().sum() - direction.square().sum()) / (k * classes**2)
    ed = (n * k * (k - 1) + z.sum(1).square().sum() - z.square().sum()) / (n * k**2)
    return fd + md + ed


def numpy_rows(x: Tensor, targets: Tensor, attention: Tensor) -> Tensor:
    """Eqs. 9 to 11 sample by sample in NumPy. Like whatever leaves PyTorch on the way, it passes no gradient."""
    z = x.detach().float().cpu().numpy()
    y, w = targets.cpu().numpy(), attention.cpu().numpy()
    n, k, _ = z.shape
    means = np.stack([z[y == a].mean(0) for a in np.unique(y)])
    z, means = (v - v.mean(-1, keepdims=True) for v in (z, means))
    z, means = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (z, means))
    fd = ed = 0.0
    for i in range(n):
        phi = np.where(y == y[i], 1, -1)
        correlation = np.einsum("ld,nld->nl", z[i], z)
        deviation = np.abs(phi[:, None] - correlation).sum(1) * (w[y] + w[y[i]])
        fd += deviation.sum() - deviation[i]
        among = np.abs(1 + z[i] @ z[i].T)
        ed += among.sum() - np.trace(among)
    among = np.abs(1 + np.einsum("ald,bld->lab", means, means))
    md = among.sum() - np.trace(among, axis1=1, axis2=2).sum()
    return torch.tensor(fd / (k * n**2) + md / (k * len(w) ** 2) + ed / (n * k**2))


def _metric_learning(name: str, miner: str = "") -> Callable[[], Call]:
    def make() -> Call:
        from pytorch_metric_learning import losses, miners

        loss = getattr(losses, name)()
        mine = getattr(miners, miner)() if miner else None

        def call(x: Tensor, targets: Tensor, attention: Tensor) -> Tensor:
            flat = x.flatten(1)
            return loss(flat, targets, *([mine(flat, targets)] if mine else []))

        return call

    return make


def _rival(name: str, growth: int = 2, miner: str = "") -> Contender:
    return Contender(_metric_learning(name, miner), growth, same=False, package="pytorch_metric_learning")


OURS = {
    "triton": Contender(_terms("triton"), 1),  # the fused kernels
    "torch": Contender(_terms("torch"), 1),  # streamed on a CPU, whole tensors elsewhere
    "pairs": Contender(_terms("auto", pairs="sample"), 2),  # every pair of samples, tile by tile
}
COMPILED_AT = (600, 4096, 65536)
RIVALS = {
    "reference": Contender(_terms("reference"), 2),  # Eqs. 1 to 11 with n x n matrices
    "factored": Contender(lambda: factored, 1),
    "supcon": _rival("SupConLoss"),
    "multi-similarity": _rival("MultiSimilarityLoss"),
    "circle": _rival("CircleLoss"),
    "triplet": _rival("TripletMarginLoss", 3),  # all triplets
    "triplet-hard": _rival("TripletMarginLoss", miner="BatchHardMiner"),
    "numpy-rows": Contender(lambda: numpy_rows, 2, gradient=False),
    "factored-compiled": Contender(_compiled(lambda: factored), 1, sizes=COMPILED_AT),
    "reference-compiled": Contender(_compiled(_terms("reference")), 2, sizes=COMPILED_AT),
}
CONTENDERS = OURS | RIVALS
