"""FD's pairs of different classes one by one, the part of pairs="sample" that no class statistics hold.

They are pairs of a whole batch, over chunks and ranks; a process computes those of a range of its samples, its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from adcorre.backends import Options, backend_of
from adcorre.statistics import counts_of


class Between(NamedTuple):
    """The samples of a whole batch: x (n, k, d) without a graph and targets (n,), of which [start, stop) are one's own.

    Places without a sample, where ranks have different numbers, hold `ignore_index` as their label.
    attention (C,): w. sums (2,): FD's and the naive FD's sums over the pairs of own samples; over ranks they add.
    scale (): 1 / (k n^2), n the samples that take part.
    """

    x: Tensor
    targets: Tensor
    start: int
    stop: int
    attention: Tensor
    sums: Tensor
    scale: Tensor


@torch.no_grad()
def between_sums(
    x: Tensor, targets: Tensor, start: int, stop: int, attention: Tensor, flat: Tensor, options: Options
) -> Between:
    """`Between` of the samples [start, stop), with its sums; `flat` are the statistics of the whole batch."""
    x = x.detach()
    sums = backend_of(options).pair_values(x, targets, attention, *_settings(options), start, stop)
    scale = 1 / (x.shape[1] * counts_of(flat, attention.shape[0]).sum().clamp(min=1) ** 2)
    return Between(x, targets, start, stop, attention, sums, scale)


def between_alone(x: Tensor, targets: Tensor, attention: Tensor, flat: Tensor, options: Options) -> Between:
    """`Between` of samples that are a whole batch by themselves."""
    return between_sums(x, targets, 0, x.shape[0], attention, flat, options)


@torch.no_grad()
def between_gradient(between: Between, upstream: Tensor, options: Options) -> Tensor:
    """The gradient of the whole batch's FD times `upstream` (), for own samples: (stop - start, k, d), float32 or 64.

    Both a sample's own pairs and its place in everybody else's count: no other rank has a part of this gradient.
    """
    x, targets, start, stop, attention, _, scale = between
    settings = (*_settings(options), start, stop)
    return backend_of(options).pair_gradient(x, targets, attention, upstream * scale, *settings)


def _settings(options: Options) -> tuple[float, int, str]:
    return options.between_target, options.ignore_index, options.precision
