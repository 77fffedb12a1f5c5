"""The losses that are compared, each as one call from embeddings to a loss with its graph.

A contender is built once per process and shape, and takes x (n, k, d), targets (n,) and attention (C,). Those of
pytorch-metric-learning see the same embeddings as (n, k d), with that library's own defaults.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adcorre import adcorre_terms
from adcorre.checks import STATISTICS_DTYPE, Target

Call = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Contender:
    """`linear`: time and memory grow with n, not with its square.

    `same`: it computes FD + MD + ED, so that its gradient is held against the reference's before it is timed.
    `package`: what has to be installed beside PyTorch. `device`: "cpu" or "cuda" where it runs on that alone.
    `sizes`: the only n to try, where each is compiled anew. `metric`: it joins part "metric" of `bench loss`, k = 1 and
    about four samples a class; `only_metric`: and no other.
    """

    make: Callable[[], Call]
    linear: bool
    same: bool = True
    package: str = ""
    device: str = ""
    sizes: tuple[int, ...] = ()
    metric: bool = False
    only_metric: bool = False

    def fits(self, kind: str) -> bool:
        return self.device in ("", kind)

    def installed(self) -> bool:
        return not self.package or importlib.util.find_spec(self.package) is not None


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


OURS_OF_METRIC: dict[str, Target] = {"metric": -1, "metric, simplex": "simplex"}  # targets of AdCorreMetricLoss
LIBRARY_LOSSES = {
    "supcon": "SupConLoss", "multi-similarity": "MultiSimilarityLoss", "circle": "CircleLoss",
    "triplet": "TripletMarginLoss",
}  # fmt: skip
METRIC_LOSSES = (*OURS_OF_METRIC, *LIBRARY_LOSSES)


def metric_loss(name: str) -> nn.Module:
    """One of METRIC_LOSSES, of embeddings (n, d) and labels."""
    if name in LIBRARY_LOSSES:
        from pytorch_metric_learning import losses

        return getattr(losses, LIBRARY_LOSSES[name])()
    from adcorre.metric import AdCorreMetricLoss

    return AdCorreMetricLoss(between_target=OURS_OF_METRIC[name], mean_target=OURS_OF_METRIC[name])


def _metric(name: str, only_metric: bool = True) -> Contender:
    def make() -> Call:
        loss = metric_loss(name)
        return lambda x, targets, attention: loss(x.flatten(1), targets)

    package = "pytorch_metric_learning" if name in LIBRARY_LOSSES else ""
    return Contender(make, not package, same=False, package=package, metric=True, only_metric=only_metric)


def _inf_cl() -> Call:
    """InfoNCE between each sample and its neighbour in the batch, in tiles: as many pairs as ours."""
    from inf_cl import cal_flash_loss

    def call(x: Tensor, targets: Tensor, attention: Tensor) -> Tensor:
        z = torch.nn.functional.normalize(x.flatten(1), dim=-1)
        return cal_flash_loss(z, z.roll(1, 0), scale=10.0, head_dim=math.gcd(256, z.shape[1])).mean()

    return call


# Linear backends, from the fastest: on each kind of device the first that runs there is what ratios are to.
OURS = {
    "triton": Contender(_terms("triton"), True, device="cuda"),  # the fused kernels
    "numba": Contender(_terms("numba"), True, package="numba", device="cpu"),  # the fused kernels
    "torch": Contender(_terms("torch"), True),  # streamed on a CPU, whole tensors elsewhere
    "pairs": Contender(_terms("auto", pairs="sample"), False),  # every pair of samples, tile by tile
}
COMPILED_AT = (600, 4096, 65536)
RIVALS = {
    "reference": Contender(_terms("reference"), False),  # Eqs. 1 to 11 with n x n matrices
    "factored": Contender(lambda: factored, True),
    **{name: _metric(name, only_metric=False) for name in ("supcon", "multi-similarity")},
    **{name: _metric(name) for name in ("circle", "triplet", *OURS_OF_METRIC)},
    "inf-cl": Contender(_inf_cl, False, same=False, package="inf_cl", device="cuda", metric=True),
    "factored-compiled": Contender(_compiled(lambda: factored), True, sizes=COMPILED_AT),
    "reference-compiled": Contender(_compiled(_terms("reference")), False, sizes=COMPILED_AT),
}
CONTENDERS = OURS | RIVALS


def ours_on(kind: str) -> list[str]:
    """The linear backends that run on "cpu" or "cuda" here, the fastest first; ratios are to that one."""
    return [
        name for name, contender in OURS.items() if contender.linear and contender.fits(kind) and contender.installed()
    ]
