"""The two steps over the logits: prediction counts and the sum of cross-entropies, and the gradient of that sum."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from adcorre.checks import at_least_float32, label_masks


def logits_sums(
    logits: Tensor,
    targets: Tensor,
    ce_weight: Tensor | None,
    adjustment: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """`predictions` (2, C) int64 and `ce` (2,) of `BatchSums`.

    `adjustment` (C,) is added to the logits for cross-entropy, not for the prediction. Differentiable in ce[0].
    """
    takes_part, bad = label_masks(targets, logits.shape[1], ignore_index)
    counts = count_predictions(logits, targets, takes_part)
    # On CUDA a bad label in `cross_entropy` would leave the device unusable, so that bad labels are replaced.
    # Ignored rows are set to zero: a NaN in one of them would reach the sum.
    scores = torch.where(takes_part[:, None], _scores(logits, adjustment), 0)
    weight = None if ce_weight is None else ce_weight.to(scores.dtype)
    labels = torch.where(takes_part, targets, ignore_index)
    total = cross_entropy(
        scores, labels, weight, reduction="sum", label_smoothing=label_smoothing, ignore_index=ignore_index
    )
    divisor = counts[1].sum().to(total.dtype) if weight is None else (counts[1] * weight).sum()
    return counts, torch.stack((total, torch.where(bad.any(), torch.nan, divisor)))


def logits_gradient(
    logits: Tensor,
    targets: Tensor,
    upstream: Tensor,
    ce_weight: Tensor | None,
    adjustment: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
) -> Tensor:
    """The gradient of ce[0] times `upstream` (), in the logits' dtype: softmax less the smoothed targets, weighted.

    Ignored rows are 0 * upstream. A bad label makes ce[1] NaN, and with it upstream and the whole gradient.
    """
    num_classes = logits.shape[1]
    takes_part, _ = label_masks(targets, num_classes, ignore_index)
    probability, place = _scores(logits, adjustment).softmax(1), targets.clamp(0, num_classes - 1)[:, None]
    weight = None if ce_weight is None else ce_weight.to(probability.dtype)
    own = upstream if weight is None else upstream * weight[place]  # of the label itself
    if label_smoothing:
        smooth = upstream * (label_smoothing / num_classes)  # of every class
        own = own * (1 - label_smoothing)
        total = own + smooth * (num_classes if weight is None else weight.sum())
        gradient = probability * total - (smooth if weight is None else smooth * weight)
    else:
        gradient = probability * own
    gradient = gradient.scatter(1, place, gradient.gather(1, place) - own)
    return torch.where(takes_part[:, None], gradient, 0 * upstream).to(logits.dtype)


def count_predictions(logits: Tensor, targets: Tensor, takes_part: Tensor) -> Tensor:
    """(2, C) int64: for each class, samples predicted right and samples."""
    num_classes = logits.shape[1]
    labels = torch.where(takes_part, targets, num_classes)
    correct = takes_part & (logits.argmax(1) == targets)
    counted = torch.stack((correct, takes_part)).long()
    return counted.new_zeros(2, num_classes + 1).index_add(1, labels, counted)[:, :num_classes]


def _scores(logits: Tensor, adjustment: Tensor | None) -> Tensor:
    """Adjusted logits in float32 at least."""
    scores = logits.to(at_least_float32(logits.dtype))
    return scores if adjustment is None else scores + adjustment.to(scores.dtype)
