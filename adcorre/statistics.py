"""Additive class statistics, and the step from them to the three terms and their gradient tables.

With z the centred and normalized vectors, every term is a function of sums over the samples of each class: at the
target -1 no deviation is negative, so that the absolute value can be dropped. Statistics of two sets of samples add.
`terms` costs C k d operations and reads no sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from adcorre.checks import validates_labels
from adcorre.normalize import tolerance

BLOCK_ELEMENTS = 1 << 22  # correlations of class pairs in memory at once, for targets other than -1


@dataclass(frozen=True)
class FlatStatistics:
    """Sums over the samples of each class. Statistics of two sets of samples add (`+`).

    `flat` is one buffer, for a single all-reduce over ranks. It holds, in this order, in float32 or float64:

    ================  =========  ==================================================================================
    direction_sum     (C, k, d)  S: sums of z, the centred and normalized vectors
    centred_sum       (C, k, d)  M: sums of x - mean(x)
    norm_sum          (C, k)     A: sums of |x|, the scale for deciding that a class mean is constant
    square_sum        (C,)       sums of |z|^2 over samples and vectors: k per sample minus its constant vectors
    count             (C,)       samples; NaN if a label is neither in [0, C) nor `ignore_index`
    embedding_sum     ()         ED's sum: |sum_l z_l|^2 over samples at embedding_target -1,
                                 else sum_{l != m} |z_l . z_m - embedding_target|
    ================  =========  ==================================================================================
    """

    flat: Tensor
    num_classes: int
    k: int
    d: int
    embedding_target: float = -1.0

    def __post_init__(self) -> None:
        expected = flat_size(self.num_classes, self.k, self.d)
        if tuple(self.flat.shape) != (expected,):
            raise ValueError(
                f"ClassStatistics: expected {expected} numbers for C = {self.num_classes}, k = {self.k}, "
                f"d = {self.d}; got shape {tuple(self.flat.shape)}"
            )

    def _part(self, start: int, *shape: int) -> Tensor:
        size = 1
        for extent in shape:
            size *= extent
        return self.flat[start : start + size].view(shape)

    @property
    def direction_sum(self) -> Tensor:
        return self._part(0, self.num_classes, self.k, self.d)

    @property
    def centred_sum(self) -> Tensor:
        return self._part(self.num_classes * self.k * self.d, self.num_classes, self.k, self.d)

    @property
    def norm_sum(self) -> Tensor:
        return self._part(2 * self.num_classes * self.k * self.d, self.num_classes, self.k)

    @property
    def square_sum(self) -> Tensor:
        return self._part((2 * self.d + 1) * self.num_classes * self.k, self.num_classes)

    @property
    def count(self) -> Tensor:
        return self._part((2 * self.d + 1) * self.num_classes * self.k + self.num_classes, self.num_classes)

    @property
    def embedding_sum(self) -> Tensor:
        return self.flat[-1]

    def __add__(self, other: Self) -> Self:
        if not isinstance(other, FlatStatistics):
            return NotImplemented
        left = (self.num_classes, self.k, self.d, self.embedding_target)
        right = (other.num_classes, other.k, other.d, other.embedding_target)
        if left != right:
            raise ValueError(
                f"ClassStatistics: only equal (num_classes, k, d, embedding_target) add; got {left} and {right}"
            )
        return type(self)(self.flat + other.flat, *left)


def flat_size(num_classes: int, k: int, d: int) -> int:
    """Length of `FlatStatistics.flat`."""
    return num_classes * k * (2 * d + 1) + 2 * num_classes + 1


def class_counts(flat: Tensor, num_classes: int) -> Tensor:
    """`FlatStatistics.count` (C,) of a flat vector: NaN if a label is bad."""
    return flat[-1 - num_classes : -1]


class Values(NamedTuple):
    """The terms of a batch, () each: FD (Eq. 9), MD (Eq. 10), ED (Eq. 11) and the naive FD (Eq. 5), which is for logs.

    This is also the order of the terms, and of their upstream gradients, in tensors (4,).
    """

    fd: Tensor
    md: Tensor
    ed: Tensor
    nfd: Tensor


class Tables(NamedTuple):
    """The inputs of the backward pass beside the embeddings: one row per class, independent of n.

    feature (C, k, d): G, d FD / d z for a sample of the class.
    mean (C, k, d): H, d MD / d x for a sample of the class.
    embedding_scale (): 2 / (n k^2), the factor of ED's gradient.
    """

    feature: Tensor
    mean: Tensor
    embedding_scale: Tensor


def terms(
    statistics: FlatStatistics, attention: Tensor, between_target: float | None, mean_target: float
) -> tuple[Tensor, Tables]:
    """`Values` as one tensor (4,), and the gradient tables, in the statistics' dtype.

    If `between_target` is None, FD and its table include only the pairs within classes.

    Computed in float64 if the device supports it: the sums are much larger than FD, and this step is cheap.
    """
    dtype = statistics.flat.dtype
    work = dtype if statistics.flat.device.type == "mps" else torch.float64
    wide = FlatStatistics(
        statistics.flat.to(work), statistics.num_classes, statistics.k, statistics.d, statistics.embedding_target
    )
    w = attention.to(work)
    count = wide.count
    n = count.sum()
    at_least_one = n.clamp(min=1)  # a NaN count stays NaN
    fd, nfd, feature = _feature_discriminator(wide, w, n, at_least_one, between_target)
    md, mean = _mean_discriminator(wide, tolerance(dtype), mean_target)
    md, mean = md + 0 * n, mean + 0 * n
    k = wide.k
    ed = wide.embedding_sum
    if wide.embedding_target == -1.0:
        ed = n * (k * (k - 1)) + ed - wide.square_sum.sum()
    ed = (ed if k > 1 else 0 * n) / (at_least_one * k**2)
    embedding_scale = 2 / (at_least_one * k**2)
    values = torch.stack(Values(fd=fd, md=md, ed=ed, nfd=nfd)).to(dtype)
    return values, Tables(feature.to(dtype), mean.to(dtype), embedding_scale.to(dtype))


def _feature_discriminator(
    statistics: FlatStatistics, w: Tensor, n: Tensor, at_least_one: Tensor, target: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """FD (Eq. 9), the naive FD (Eq. 5: w = 1/2) and the table G."""
    s, k, count = statistics.direction_sum, statistics.k, statistics.count
    squared_length = s.square().sum((1, 2))
    missing = k * count - statistics.square_sum  # constant vectors
    divisor = k * at_least_one**2
    rows = w[:, None, None]
    if target == -1.0:
        total = s.sum(0)
        weighted_total = (rows * s).sum(0)

        def value(w: Tensor, weighted_total: Tensor) -> Tensor:
            q = 2 * (w * squared_length).sum() - (total * weighted_total).sum() - (w * statistics.square_sum).sum()
            return 2 * (k * (n - 1) * (w * count).sum() - q) / divisor

        fd, nfd = value(w, weighted_total), value(torch.full_like(w, 0.5), total / 2)
        gradient = (-2 / divisor) * (4 * rows * s - rows * total - weighted_total)
        return fd, nfd, gradient

    within = k * count.square() - squared_length - missing  # sum over ordered pairs of 1 - z_i . z_j
    fd, nfd = 2 * (w * within).sum(), within.sum()
    gradient = -4 * rows * s
    if target is None:
        return fd / divisor, nfd / divisor, gradient / divisor
    present = count > 0
    classes = _compared_classes(present)
    others = s[classes]
    for block in _class_blocks(classes, k):
        correlation_sum = torch.einsum("ald,bld->lab", s[block], others)
        difference = correlation_sum - target * count[block, None] * count[classes]
        difference = torch.where(_class_pairs(present, block, classes), difference, 0)
        pair_weight = w[block, None] + w[classes]
        deviation = difference.abs()
        fd = fd + (pair_weight * deviation).sum()
        nfd = nfd + deviation.sum()
        gradient[block] += 2 * torch.einsum("lab,bld->ald", pair_weight * difference.sign(), others)
    return fd / divisor, nfd / divisor, gradient / divisor


def _mean_discriminator(statistics: FlatStatistics, tolerance: float, target: float) -> tuple[Tensor, Tensor]:
    """MD (Eq. 10) and the table H. M replaces the class means: their direction does not depend on the count."""
    num_classes, k, m = statistics.num_classes, statistics.k, statistics.centred_sum
    divisor = k * num_classes**2
    present = statistics.count > 0
    length = torch.linalg.vector_norm(m, dim=-1)
    constant = length <= tolerance * statistics.norm_sum
    has_direction = (present[:, None] & ~constant)[..., None]
    length = torch.where(has_direction[..., 0], length, 1)[..., None]
    direction = torch.where(has_direction, m / length, 0)
    if num_classes == 1:
        return direction.sum() * 0, torch.zeros_like(m)
    if target == -1.0:
        number_present = present.sum()
        total = direction.sum(0)
        pairs = k * number_present * (number_present - 1)
        md = pairs + total.square().sum() - direction.square().sum()
        h = (2 / divisor) * total
    else:
        md = m.new_zeros(())
        h = torch.zeros_like(m)
        classes = _compared_classes(present)
        others = direction[classes]
        for block in _class_blocks(classes, k):
            difference = torch.einsum("ald,bld->lab", direction[block], others) - target
            difference = torch.where(_class_pairs(present, block, classes), difference, 0)
            md = md + difference.abs().sum()
            h[block] = (2 / divisor) * torch.einsum("lab,bld->ald", difference.sign(), others)
    projected = h - direction * (direction * h).sum(-1, keepdim=True)
    return md / divisor, torch.where(has_direction, projected / length, 0)


def _compared_classes(present: Tensor) -> Tensor:
    """The classes whose pairs are computed: those with samples, or all if finding them would synchronize a device."""
    if validates_labels(present, None):
        return present.nonzero()[:, 0]
    return torch.arange(present.shape[0], device=present.device)


def _class_blocks(classes: Tensor, k: int) -> tuple[Tensor, ...]:
    """Blocks of classes small enough that a block's correlations with all of them fit in BLOCK_ELEMENTS."""
    return classes.split(max(1, BLOCK_ELEMENTS // max(1, classes.shape[0] * k)))


def _class_pairs(present: Tensor, block: Tensor, classes: Tensor) -> Tensor:
    """(block, classes) mask: ordered pairs of two different classes that are present."""
    return present[block, None] & present[classes] & (block[:, None] != classes)
