"""The two streaming passes of the torch backend on a CPU, as `torch.library` ops so that `torch.compile` sees no loop.

Samples are processed in chunks that stay in cache: x is read once per pass and no temporary has its size. A chunk is
centred, and the rest is batched products of small matrices, one per sample. The k x k Gram matrix of a sample's centred
vectors holds their lengths and every correlation that ED needs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from adcorre.checks import STATISTICS_DTYPE, label_masks
from adcorre.normalize import tolerance
from adcorre.statistics import FlatStatistics, flat_size

CHUNK_ELEMENTS = 1 << 18  # of x: 1 MiB in float32
ROUNDED_ADDITIONS = 64  # samples per class, about, after which float32 sums are added to the float64 totals


@torch.library.custom_op("adcorre::streaming_statistics", mutates_args=(), device_types="cpu")
def streaming_statistics(
    x: Tensor, targets: Tensor, num_classes: int, ignore_index: int, embedding_target: float
) -> Tensor:
    """`FlatStatistics.flat` of x (n, k, d) with targets (n,): one pass over x."""
    _, k, d = x.shape
    dtype = STATISTICS_DTYPE[x.dtype]
    chunks = _Chunks(x, targets, num_classes, ignore_index)
    total = torch.zeros(2, num_classes, k, d, dtype=torch.float64)  # of directions and of centred vectors
    partial = torch.zeros_like(total, dtype=dtype) if dtype != total.dtype else total
    embedding_sum = torch.zeros((), dtype=torch.float64)
    squared_length_of_x, inverses = (torch.empty(chunks.labels.shape[0], k, dtype=dtype) for _ in range(2))
    buffer = torch.empty(chunks.size, k, d, dtype=dtype)
    pending = 0
    with torch.autocast("cpu", enabled=False):
        for rows, labels, where in chunks:
            centred, inverse = buffer[: labels.shape[0]], inverses[where]
            mean = torch.mean(rows, -1, keepdim=True, dtype=dtype)
            torch.sub(rows, mean, out=centred)
            gram = torch.bmm(centred, centred.mT)
            _inverse_length(gram, mean, d, inverse, squared_length_of_x[where])
            partial[1].index_add_(0, labels, centred)
            partial[0].index_add_(0, labels, centred.mul_(inverse[..., None]))
            correlations = gram.mul_(inverse[..., None]).mul_(inverse[:, None])
            if embedding_target != -1.0:
                correlations.sub_(embedding_target).abs_().diagonal(dim1=1, dim2=2).zero_()
            embedding_sum += correlations.sum()
            pending += labels.shape[0]
            if partial is not total and pending >= ROUNDED_ADDITIONS * num_classes:
                total += partial
                partial.zero_()
                pending = 0
    if partial is not total:
        total += partial
    flat = torch.empty(flat_size(num_classes, k, d), dtype=dtype)
    out = FlatStatistics(flat, num_classes, k, d, embedding_target)
    out.direction_sum.copy_(total[0])
    out.centred_sum.copy_(total[1])
    by_class = torch.zeros(num_classes, k, dtype=torch.float64)
    out.norm_sum.copy_(by_class.index_add(0, chunks.labels, squared_length_of_x.sqrt().double()))
    out.square_sum.copy_(by_class.index_add(0, chunks.labels, inverses.ne(0).double()).sum(1))
    out.count.copy_(torch.bincount(chunks.labels, minlength=num_classes))
    if chunks.bad_labels:
        out.count.fill_(torch.nan)
    out.embedding_sum.copy_(embedding_sum)
    return flat


@streaming_statistics.register_fake
def _(x: Tensor, targets: Tensor, num_classes: int, ignore_index: int, embedding_target: float) -> Tensor:
    return x.new_empty(flat_size(num_classes, x.shape[1], x.shape[2]), dtype=STATISTICS_DTYPE[x.dtype])


@torch.library.custom_op("adcorre::streaming_gradient", mutates_args=(), device_types="cpu")
def streaming_gradient(
    x: Tensor,
    targets: Tensor,
    feature: Tensor,
    mean: Tensor,
    embedding_scale: Tensor,
    ignore_index: int,
    embedding_target: float,
) -> Tensor:
    """dL/dx, contiguous and in x's dtype: one pass that reads x and writes the gradient.

    `feature`, `mean` and `embedding_scale` are `Tables`, already multiplied by the upstream gradients of FD, MD and ED.
    """
    _, k, d = x.shape
    out = torch.empty(x.shape, dtype=x.dtype)
    dtype = feature.dtype
    scale = float(embedding_scale)
    off_diagonal = (1 - torch.eye(k, dtype=dtype)) * scale
    chunks = _Chunks(x, targets, feature.shape[0], ignore_index)
    in_place = chunks.positions is None and out.dtype == dtype
    if chunks.positions is not None:
        out.fill_(0 * scale)  # ignored samples: zero, or NaN if a label is bad
    buffers = torch.empty(2 if in_place else 3, chunks.size, k, d, dtype=dtype)
    small = torch.empty(2, chunks.size, k, dtype=dtype)
    with torch.autocast("cpu", enabled=False):
        for rows, labels, where in chunks:
            b = labels.shape[0]
            centred, pull = buffers[0, :b], buffers[1, :b]
            inverse, squared_length_of_x = small[:, :b]
            row_mean = torch.mean(rows, -1, keepdim=True, dtype=dtype)
            torch.sub(rows, row_mean, out=centred)
            gram = torch.bmm(centred, centred.mT)
            _inverse_length(gram, row_mean, d, inverse, squared_length_of_x)
            correlations = gram.mul_(inverse[..., None]).mul_(inverse[:, None])
            torch.index_select(feature, 0, labels, out=pull)
            # dL/dz_l = G_l + sum over m != l of weight[l, m] z_m. The projection removes the pair (l, l).
            weight = off_diagonal
            if embedding_target != -1.0:
                weight = off_diagonal * (correlations - embedding_target).sign_()
            along = (weight * correlations).sum(2)  # z_l . dL/dz_l
            along.addcmul_(torch.bmm(centred, pull.mT).diagonal(dim1=1, dim2=2), inverse)
            # dL/dx_l = (dL/dz_l - z_l along_l) / |x_l - mean| + H_l, z written as the centred vectors times `inverse`
            mix = weight * inverse[:, None]
            mix.diagonal(dim1=1, dim2=2).addcmul_(along, inverse, value=-1)
            mix *= inverse[..., None]
            gradient = out[where] if in_place else buffers[2, :b]
            torch.index_select(mean, 0, labels, out=gradient)
            gradient.addcmul_(pull, inverse[..., None]).baddbmm_(mix, centred)
            if not in_place:
                out[where if chunks.positions is None else chunks.positions[where]] = gradient.to(out.dtype)
    return out


@streaming_gradient.register_fake
def _(
    x: Tensor,
    targets: Tensor,
    feature: Tensor,
    mean: Tensor,
    embedding_scale: Tensor,
    ignore_index: int,
    embedding_target: float,
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


class _Chunks:
    """The samples that take part, chunk by chunk: (rows of x (b, k, d), labels (b,), slice of `labels`).

    positions: their indices in x, None if all samples take part. bad_labels: whether a label is neither in range nor
    `ignore_index`. size: the largest b.
    """

    def __init__(self, x: Tensor, targets: Tensor, num_classes: int, ignore_index: int) -> None:
        takes_part, bad = label_masks(targets, num_classes, ignore_index)
        self.x = x
        self.bad_labels = bool(bad.any())
        self.positions = None if bool(takes_part.all()) else takes_part.nonzero()[:, 0]
        self.labels = (targets if self.positions is None else targets[self.positions]).long()
        self.size = min(max(1, CHUNK_ELEMENTS // (x.shape[1] * x.shape[2])), self.labels.shape[0])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, slice]]:
        for start in range(0, self.labels.shape[0], max(1, self.size)):
            where = slice(start, start + self.size)
            rows = self.x[where] if self.positions is None else self.x[self.positions[where]]
            yield rows, self.labels[where], where


def _inverse_length(gram: Tensor, mean: Tensor, d: int, inverse: Tensor, squared_length_of_x: Tensor) -> None:
    """From the Gram matrices of centred vectors: 1 / |x - mean|, 0 for a constant vector, and |x|^2, (b, k) each."""
    squared_length = gram.diagonal(dim1=1, dim2=2)
    torch.addcmul(squared_length, mean[..., 0], mean[..., 0], value=d, out=squared_length_of_x)
    constant = squared_length <= squared_length_of_x * tolerance(gram.dtype) ** 2
    torch.rsqrt(squared_length, out=inverse).masked_fill_(constant, 0)
    inverse.add_(squared_length, alpha=0)  # NaN on overflow: rsqrt(inf) = 0 would hide it
