"""The two passes of the torch backend on devices other than the CPU: whole-tensor operations that Inductor can fuse.

There is no matrix product with x, since its precision would depend on the user's TF32 and autocast settings.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adcorre.checks import STATISTICS_DTYPE, label_masks
from adcorre.normalize import normalize


def plain_statistics(
    x: Tensor, targets: Tensor, num_classes: int, ignore_index: int, embedding_target: float
) -> Tensor:
    """`ClassStatistics.flat` of x (n, k, d) with targets (n,).

    Class sums use `index_add`, which is deterministic on CUDA only under `use_deterministic_algorithms`.
    """
    x, labels, bad = _participants(x, targets, num_classes, ignore_index)
    centred, z, inverse, squared_length_of_x = normalize(x)
    has_direction = (inverse[..., 0] != 0) & (labels < num_classes)[:, None]

    def by_class(rows: Tensor) -> Tensor:
        return rows.new_zeros(num_classes + 1, *rows.shape[1:]).index_add(0, labels, rows)[:num_classes]

    count = by_class(x.new_ones(x.shape[0])) + torch.where(bad.any(), torch.nan, 0.0).to(x.dtype)
    if embedding_target == -1.0:
        embedding_sum = z.sum(1).square().sum()
    else:
        per_sample = x.new_zeros(x.shape[0])
        for shift in range(1, x.shape[1]):
            per_sample = per_sample + ((z * z.roll(shift, 1)).sum(-1) - embedding_target).abs().sum(1)
        embedding_sum = torch.where(labels < num_classes, per_sample, 0).sum()
    parts = (
        by_class(z),
        by_class(centred),
        by_class(squared_length_of_x.sqrt()[..., 0]),
        by_class(has_direction.sum(1).to(x.dtype)),
        count,
        embedding_sum,
    )
    return torch.cat([part.reshape(-1) for part in parts])


def plain_gradient(
    x: Tensor,
    targets: Tensor,
    feature: Tensor,
    mean: Tensor,
    embedding_scale: Tensor,
    ignore_index: int,
    embedding_target: float,
) -> Tensor:
    """dL/dx, contiguous and in x's dtype, from `Tables` already multiplied by the upstream gradients."""
    dtype, num_classes = x.dtype, feature.shape[0]
    x, labels, _ = _participants(x, targets, num_classes, ignore_index)
    _, z, inverse_length, _ = normalize(x)
    # dL/dz = G + sum over m != l of weight[l, m] z_m. The projection removes the pair (l, l).
    if embedding_target == -1.0:
        others = z.sum(1, keepdim=True) - z
    else:
        others = torch.zeros_like(z)
        for shift in range(1, x.shape[1]):
            rolled = z.roll(shift, 1)
            others = others + ((z * rolled).sum(-1, keepdim=True) - embedding_target).sign() * rolled
    rows = labels.clamp(max=num_classes - 1)
    g = feature[rows] + embedding_scale * others
    gradient = (g - z * (z * g).sum(-1, keepdim=True)) * inverse_length + mean[rows]
    takes_part = (labels < num_classes)[:, None, None]
    return torch.where(takes_part, gradient, 0 * embedding_scale).to(dtype).contiguous()


def _participants(x: Tensor, targets: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """x with ignored samples set to zero, labels with ignored samples in class C, and the mask of bad labels."""
    takes_part, bad = label_masks(targets, num_classes, ignore_index)
    x = x.to(STATISTICS_DTYPE[x.dtype])
    return torch.where(takes_part[:, None, None], x, 0), torch.where(takes_part, targets, num_classes).long(), bad
