"""FD over single pairs of samples of different classes, for pairs="sample": class statistics cannot express it.

The pairs are those of the whole batch, over all chunks and ranks. A process computes the pairs of its own samples.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from adcorre.backends import Options, get_backend
from adcorre.statistics import class_counts


class BetweenPairs(NamedTuple):
    """The samples of a whole batch, detached: x (n, k, d) and targets (n,). [start, stop) are this process's own.

    Padding, where ranks have different numbers of samples, has the label `ignore_index`.
    attention (C,): w. sums (2,): FD's and the naive FD's sums over the pairs of own samples; sums of ranks add.
    scale (): 1 / (k n^2), n the number of samples that take part.
    """

    x: Tensor
    targets: Tensor
    start: int
    stop: int
    attention: Tensor
    sums: Tensor
    scale: Tensor


@torch.no_grad()
def sum_pairs(
    x: Tensor, targets: Tensor, start: int, stop: int, attention: Tensor, flat: Tensor, options: Options
) -> BetweenPairs:
    """The pairs of the samples [start, stop), with their sums. `flat`: the statistics of the whole batch."""
    x = x.detach()
    sums = get_backend(options).pair_values(x, targets, attention, *_settings(options), start, stop)
    scale = 1 / (x.shape[1] * class_counts(flat, attention.shape[0]).sum().clamp(min=1) ** 2)
    return BetweenPairs(x, targets, start, stop, attention, sums, scale)


def pairs_of_one_batch(x: Tensor, targets: Tensor, attention: Tensor, flat: Tensor, options: Options) -> BetweenPairs:
    """The pairs of a batch on one process, in one chunk."""
    return sum_pairs(x, targets, 0, x.shape[0], attention, flat, options)


@torch.no_grad()
def pairs_gradient(between: BetweenPairs, upstream: Tensor, options: Options) -> Tensor:
    """The gradient of the whole batch's FD times `upstream` (), for own samples: (stop - start, k, d).

    It is float32 or float64, and complete: other ranks add nothing to it.
    """
    x, targets, start, stop, attention, _, scale = between
    settings = (*_settings(options), start, stop)
    return get_backend(options).pair_gradient(x, targets, attention, upstream * scale, *settings)


def _settings(options: Options) -> tuple[float, int, str]:
    return options.between_target, options.ignore_index, options.precision
