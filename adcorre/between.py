"""FD's pairs of different classes one by one, the part of pairs="sample" that no class statistics hold.

They are pairs of a whole batch, over chunks and ranks; a process computes those of a range of its samples, its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from adcorre.backends import Gradient, Options, backend_of, bound_once, gradient_by
from adcorre.statistics import ClassStatistics


class Whole(NamedTuple):
    """The samples of a whole batch: x (n, k, d) without a graph and targets (n,), of which [start, stop) are one's own.

    Places without a sample, where ranks have different numbers, hold `ignore_index` as their label.
    """

    x: Tensor
    targets: Tensor
    start: int
    stop: int


@torch.no_grad()
def between_sums(whole: Whole, attention: Tensor, options: Options) -> Tensor:
    """(2,), own samples' part of FD's and the naive FD's sums: over ranks they add."""
    x, targets, *rows = whole
    return backend_of(options.backend).pair_values(x, targets, attention, *_settings(options), *rows)


def between_alone(x: Tensor, targets: Tensor, attention: Tensor, options: Options) -> tuple[Whole, Tensor]:
    """Samples that are a whole batch by themselves, and their sums."""
    whole = Whole(x.detach(), targets, 0, x.shape[0])
    return whole, between_sums(whole, attention, options)


@torch.no_grad()
def between_gradient(whole: Whole, attention: Tensor, scale: Tensor, options: Options) -> Tensor:
    """`scale` times the gradient of the whole batch's sum in FD, for own samples: (stop - start, k, d), float32 or 64.

    Both a sample's own pairs and its place in everybody else's count: no other rank has a part of this gradient.
    """
    x, targets, *rows = whole
    return backend_of(options.backend).pair_gradient(x, targets, attention, scale, *_settings(options), *rows)


def _settings(options: Options) -> tuple[float, int, str, bool]:
    return options.between_target, options.ignore_index, options.precision, False


def per_pair(flat: Tensor, num_classes: int, k: int, d: int) -> Tensor:
    """1 / (k n^2), n the samples behind `flat`."""
    return 1 / (k * ClassStatistics(flat, num_classes, k, d).count.sum().clamp(min=1) ** 2)


@bound_once
class BetweenFunction(torch.autograd.Function):
    """(2,), the sums of the whole batch times `per_pair`, and the gradient of the first for own samples."""

    @staticmethod
    def forward(
        x: Tensor,
        whole_x: Tensor,
        whole_targets: Tensor,
        start: int,
        attention: Tensor,
        sums: Tensor,
        per_pair: Tensor,
        options: Options,
    ) -> Tensor:
        return sums * per_pair

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, whole_x, whole_targets, start, attention, _, per_pair, ctx.options = inputs
        ctx.rows = (start, start + x.shape[0])
        ctx.save_for_backward(whole_x, whole_targets, attention, per_pair)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradient_by(_GradientFunction, *ctx.saved_tensors, upstream, ctx.rows, ctx.options)
        return gradient, None, None, None, None, None, None, None


@bound_once
class _GradientFunction(Gradient):
    @staticmethod
    def forward(
        x: Tensor,
        targets: Tensor,
        attention: Tensor,
        per_pair: Tensor,
        upstream: Tensor,
        rows: tuple[int, int],
        options: Options,
    ) -> Tensor:
        return between_gradient(Whole(x, targets, *rows), attention, upstream[0] * per_pair, options)
