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
    sums (2,): FD's and the naive FD's sums over the pairs of own samples; over ranks they add.
    """

    x: Tensor
    targets: Tensor
    start: int
    stop: int
    sums: Tensor


@torch.no_grad()
def between_sums(x: Tensor, targets: Tensor, start: int, stop: int, attention: Tensor, options: Options) -> Between:
    """`Between` of the samples [start, stop), with its sums."""
    x = x.detach()
    sums = backend_of(options).pair_values(x, targets, attention, *_settings(options), start, stop)
    return Between(x, targets, start, stop, sums)


def between_alone(x: Tensor, targets: Tensor, attention: Tensor, options: Options) -> Between:
    """`Between` of samples that are a whole batch by themselves."""
    return between_sums(x, targets, 0, x.shape[0], attention, options)


@torch.no_grad()
def between_gradient(between: Between, attention: Tensor, scale: Tensor, options: Options) -> Tensor:
    """`scale` times the gradient of the whole batch's sum in FD, for own samples: (stop - start, k, d), float32 or 64.

    Both a sample's own pairs and its place in everybody else's count: no other rank has a part of this gradient.
    """
    x, targets, start, stop, _ = between
    return backend_of(options).pair_gradient(x, targets, attention, scale, *_settings(options), start, stop)


def pair_scale(flat: Tensor, num_classes: int, k: int) -> Tensor:
    """1 / (k n^2), n the samples behind `flat`: what the sums over pairs are multiplied by."""
    return 1 / (k * counts_of(flat, num_classes).sum().clamp(min=1) ** 2)


def _settings(options: Options) -> tuple[float, int, str]:
    return options.between_target, options.ignore_index, options.precision
