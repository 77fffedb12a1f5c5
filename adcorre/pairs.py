"""FD over every pair of samples, tile by tile, for pairs="sample".

The sum of the deviations |Phi_ij - z_i . z_j| over the pairs of different classes, and its gradient, which class
statistics cannot express. There is never an n x n matrix: beside z and the result, memory is one tile. `torch.library`
ops hide the loop from `torch.compile`.

Samples are sorted by class. On a CPU most tiles then hold pairs of different classes only, which need no mask, or pairs
of one class only, which are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adcorre.checks import STATISTICS_DTYPE, label_masks
from adcorre.normalize import normalize
from adcorre.precision import exact_products

TILE = {"cpu": (256, 1024), "elsewhere": (1024, 4096)}  # rows, columns: on a CPU a tile stays in cache


@torch.library.custom_op("adcorre::pair_values", mutates_args=())
def pair_values(
    x: Tensor,
    targets: Tensor,
    attention: Tensor,
    between_target: float,
    ignore_index: int,
    precision: str,
    row_start: int,
    row_stop: int,
) -> Tensor:
    """(2,): sums of (w_i + w_j) |Phi_ij - z_il . z_jl|, and of the same with weight 1, over i in [row_start, row_stop).

    j runs over the samples of other classes of x (n, k, d); Phi is `between_target`. The pairs are ordered; if the rows
    are all samples, each unordered pair is computed once and counted twice. Not divided by k n^2.
    """
    dtype, num_classes = STATISTICS_DTYPE[x.dtype], attention.shape[0]
    total = torch.zeros(2, dtype=dtype if x.device.type == "mps" else torch.float64, device=x.device)
    once = row_stop - row_start == x.shape[0]
    with exact_products(x.device, precision):
        columns, rows = _columns_and_rows(x, targets, attention, ignore_index, row_start, row_stop)
        for block in _blocks(rows.size, x.device):
            for tile, difference, mask in _tiles(rows, columns, block, between_target, num_classes, once):
                deviation = difference.abs_() if mask is None else difference.abs_().masked_fill_(~mask, 0)
                row_sum, column_sum = deviation.sum((0, 2)).to(total.dtype), deviation.sum((0, 1)).to(total.dtype)
                total[0] += (row_sum * rows.weight[block]).sum() + (column_sum * columns.weight[tile]).sum()
                total[1] += row_sum.sum()
    return (total * (2 if once else 1)).to(dtype)


@pair_values.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(2, dtype=STATISTICS_DTYPE[x.dtype])


@torch.library.custom_op("adcorre::pair_gradient", mutates_args=())
def pair_gradient(
    x: Tensor,
    targets: Tensor,
    attention: Tensor,
    scale: Tensor,
    between_target: float,
    ignore_index: int,
    precision: str,
    row_start: int,
    row_stop: int,
) -> Tensor:
    """`scale` times the gradient of `pair_values[0]` over all rows, for x[row_start:row_stop], float32 or float64.

    With B_i = 2 sum_j (w_i + w_j) sgn(z_i . z_j - Phi_ij) z_j it is (B_i - z_i (z_i . B_i)) / |x_i - mean|.
    """
    _, k, d = x.shape
    dtype, num_classes = STATISTICS_DTYPE[x.dtype], attention.shape[0]
    scale = scale.to(dtype)
    out = torch.empty(row_stop - row_start, k, d, dtype=dtype, device=x.device)
    out.copy_((0 * scale).expand_as(out))  # ignored samples
    with exact_products(x.device, precision):
        columns, rows = _columns_and_rows(x, targets, attention, ignore_index, row_start, row_stop)
        for block in _blocks(rows.size, x.device):
            z = rows.z[:, block]
            pull = torch.zeros_like(z)
            for tile, difference, mask in _tiles(rows, columns, block, between_target, num_classes, False):
                weight = rows.weight[block, None] + columns.weight[tile]
                if mask is not None:
                    weight.masked_fill_(~mask, 0)
                pull.baddbmm_(difference.sign_().mul_(weight), columns.z[:, tile])
            pull.addcmul_(z, (z * pull).sum(-1, keepdim=True), value=-1)
            pull *= 2 * scale * rows.inverse_length[:, block, None]
            out[rows.place[block] - row_start] = pull.transpose(0, 1)
    return out


@pair_gradient.register_fake
def _(x: Tensor, *options: Any) -> Tensor:
    row_start, row_stop = options[-2:]
    return x.new_empty(row_stop - row_start, x.shape[1], x.shape[2], dtype=STATISTICS_DTYPE[x.dtype])


class _Samples(NamedTuple):
    """Samples sorted by class. Ignored samples are left out on a CPU, and come last elsewhere."""

    place: Tensor  # (m,), their rows of x
    labels: Tensor  # (m,); the number of classes for an ignored sample
    weight: Tensor  # (m,), w
    z: Tensor  # (k, m, d), centred and normalized; 0 for a constant vector or an ignored sample
    inverse_length: Tensor  # (k, m), 1 / |x - mean|, 0 for a constant vector

    @property
    def size(self) -> int:
        return self.place.shape[0]


def _columns_and_rows(
    x: Tensor, targets: Tensor, attention: Tensor, ignore_index: int, row_start: int, row_stop: int
) -> tuple[_Samples, _Samples]:
    """All samples, and those of [row_start, row_stop); the same object if these are all samples."""
    columns = _samples(x, targets, attention, ignore_index, 0)
    if row_stop - row_start == x.shape[0]:
        return columns, columns
    part = slice(row_start, row_stop)
    return columns, _samples(x[part], targets[part], attention, ignore_index, row_start)


def _samples(x: Tensor, targets: Tensor, attention: Tensor, ignore_index: int, first: int) -> _Samples:
    n, k, d = x.shape
    dtype = STATISTICS_DTYPE[x.dtype]
    takes_part, _ = label_masks(targets, attention.shape[0], ignore_index)
    labels, order = torch.where(takes_part, targets, attention.shape[0]).long().sort(stable=True)
    if x.device.type == "cpu":
        count = int(takes_part.sum())
        labels, order = labels[:count], order[:count]
    z = torch.empty(k, order.shape[0], d, dtype=dtype, device=x.device)
    inverse_length = torch.empty(k, order.shape[0], dtype=dtype, device=x.device)
    for block in _blocks(order.shape[0], x.device):
        rows = torch.where(takes_part[order[block], None, None], x[order[block]].to(dtype), 0)
        _, directions, inverse, _ = normalize(rows)
        z[:, block] = directions.transpose(0, 1)
        inverse_length[:, block] = inverse[..., 0].t()
    weight = torch.cat((attention.to(dtype), attention.new_zeros(1, dtype=dtype)))[labels]
    return _Samples(order + first, labels, weight, z, inverse_length)


def _blocks(count: int, device: torch.device, columns: bool = False, first: int = 0) -> Iterator[slice]:
    """Slices of [first, count) of a tile's number of rows, or of columns."""
    size = TILE["cpu" if device.type == "cpu" else "elsewhere"][columns]
    for start in range(first, count, size):
        yield slice(start, min(start + size, count))


def _tiles(
    rows: _Samples, columns: _Samples, block: slice, target: float, num_classes: int, once: bool
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """The tiles of a block of rows: columns, c - Phi (k, rows, columns) and the mask of pairs, None if all are pairs.

    once: yield only one of (i, j) and (j, i). Tiles without a pair are skipped. The next tile overwrites c - Phi.
    """
    z, row_labels = rows.z[:, block], rows.labels[block, None]
    on_cpu = z.device.type == "cpu"
    for tile in _blocks(columns.size, z.device, True, block.start if once else 0):
        labels = columns.labels[tile]
        mask: Tensor | None = None
        if not on_cpu or not _disjoint(row_labels[:, 0], labels):
            mask = labels > row_labels if once else labels != row_labels
            if on_cpu and not bool(mask.any()):
                continue
        if mask is not None and not on_cpu:
            mask &= (labels < num_classes) & (row_labels < num_classes)
        difference = torch.bmm(z, columns.z[:, tile].mT)
        yield tile, difference.sub_(target), mask


def _disjoint(labels: Tensor, others: Tensor) -> bool:
    """Whether the two sorted, non-empty label vectors have no class in common."""
    return bool(labels[-1] < others[0]) or bool(others[-1] < labels[0])
