"""The two streaming passes of the torch backend on a CPU, as `torch.library` ops so that `torch.compile` sees no loop.

Samples go by in chunks that stay in cache: x is read once per pass and no temporary has its size. A chunk is walked as
seldom as possible: its vectors are centred, and the rest is batched products of small matrices, one per sample. The
k x k Gram matrix of a sample's centred vectors holds their lengths and every correlation that ED needs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from adcorre.checks import STATISTICS_DTYPE, label_masks
from adcorre.statistics import ClassStatistics, flat_size

CHUNK_ELEMENTS = 1 << 18  # of x: 1 MiB in float32
ROUNDED_ADDITIONS = 64  # per class, about: sums in float32 enter the float64 totals after so many


@torch.library.custom_op("adcorre::streaming_statistics", mutates_args=(), device_types="cpu")
def streaming_statistics(
    x: Tensor, targets: Tensor, num_classes: int, ignore_index: int, embedding_target: float
) -> Tensor:
    """`ClassStatistics.flat` of x (n, k, d) with targets (n,): one pass over x."""
    _, k, d = x.shape
    dtype = STATISTICS_DTYPE[x.dtype]
    chunks = _Chunks(x, targets, num_classes, ignore_index)
    total = torch.zeros(num_classes, 2 * k, d, dtype=torch.float64)  # centred vectors, then their directions
    partial = torch.zeros_like(total, dtype=dtype) if dtype != total.dtype else total
    embedding_sum = torch.zeros((), dtype=torch.float64)
    length_of_x = torch.empty(chunks.labels.shape[0], k, dtype=dtype)
    has_direction = torch.empty_like(length_of_x)
    pending = 0
    with torch.autocast("cpu", enabled=False):
        for rows, labels, where in chunks:
            pair = torch.empty(labels.shape[0], 2 * k, d, dtype=dtype)
            centred = pair[:, :k]
            mean = rows.mean(-1, keepdim=True, dtype=dtype)
            torch.sub(rows, mean, out=centred)
            gram = torch.bmm(centred, centred.mT)
            inverse_length, length_of_x[where] = _lengths(gram, mean, d)
            torch.ne(inverse_length, 0, out=has_direction[where])
            torch.mul(centred, inverse_length[..., None], out=pair[:, k:])
            partial.index_add_(0, labels, pair)
            correlations = gram.mul_(inverse_length[..., None]).mul_(inverse_length[:, None])
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
    out = ClassStatistics(flat, num_classes, k, d, embedding_target)
    out.centred_sum.copy_(total[:, :k])
    out.direction_sum.copy_(total[:, k:])
    by_class = torch.zeros(num_classes, k, dtype=torch.float64)
    out.norm_sum.copy_(by_class.index_add(0, chunks.labels, length_of_x.double()))
    out.square_sum.copy_(by_class.index_add(0, chunks.labels, has_direction.double()).sum(1))
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
    identity = torch.eye(k, dtype=dtype)
    both = torch.cat((identity, identity), 1)
    off_diagonal = (1 - identity) * scale
    table = torch.cat((torch.zeros_like(feature), feature, mean), 1)  # a sample's rows: (its centred vectors, G, H)
    chunks = _Chunks(x, targets, feature.shape[0], ignore_index)
    if chunks.positions is not None:
        out.fill_(0 * scale)  # samples that take no part; NaN where a label was bad
    with torch.autocast("cpu", enabled=False):
        for rows, labels, where in chunks:
            triple = table.index_select(0, labels)
            centred = triple[:, :k]
            row_mean = rows.mean(-1, keepdim=True, dtype=dtype)
            torch.sub(rows, row_mean, out=centred)
            products = torch.bmm(centred, triple[:, : 2 * k].mT)
            inverse_length, _ = _lengths(products[..., :k], row_mean, d)
            correlations = products[..., :k] * inverse_length[..., None] * inverse_length[:, None]
            # dL/dz_l = G_l + sum over m != l of weight[l, m] z_m; the pair (l, l) would be projected away.
            weight = off_diagonal
            if embedding_target != -1.0:
                weight = off_diagonal * (correlations - embedding_target).sign_()
            along = (weight * correlations).sum(2)
            along.addcmul_(products[..., k:].diagonal(dim1=1, dim2=2), inverse_length)  # z_l . dL/dz_l
            mix = torch.empty(labels.shape[0], k, 3 * k, dtype=dtype)
            torch.mul(weight, inverse_length[:, None], out=mix[..., :k])
            mix[..., :k].diagonal(dim1=1, dim2=2).addcmul_(along, inverse_length, value=-1)
            mix[..., k:] = both
            mix[..., : 2 * k] *= inverse_length[..., None]
            if chunks.positions is None and out.dtype == dtype:
                torch.bmm(mix, triple, out=out[where])
            else:
                gradient = torch.bmm(mix, triple).to(out.dtype)
                out[where if chunks.positions is None else chunks.positions[where]] = gradient
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
    """The samples that take part, chunk by chunk: (rows of x (b, k, d), labels (b,), where in `labels`).

    `positions` are their places in x, None if all samples take part. `bad_labels` tells of a label that is neither in
    range nor `ignore_index`.
    """

    def __init__(self, x: Tensor, targets: Tensor, num_classes: int, ignore_index: int) -> None:
        takes_part, bad = label_masks(targets, num_classes, ignore_index)
        self.x = x
        self.bad_labels = bool(bad.any())
        self.positions = None if bool(takes_part.all()) else takes_part.nonzero()[:, 0]
        self.labels = (targets if self.positions is None else targets[self.positions]).long()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, slice]]:
        size = max(1, CHUNK_ELEMENTS // (self.x.shape[1] * self.x.shape[2]))
        for start in range(0, self.labels.shape[0], size):
            where = slice(start, start + size)
            rows = self.x[where] if self.positions is None else self.x[self.positions[where]]
            yield rows, self.labels[where], where


def _lengths(gram: Tensor, mean: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """1 / |x - mean| (0 for a constant vector) and |x|, (b, k) each, from the centred vectors' Gram matrices."""
    squared_length = gram.diagonal(dim1=1, dim2=2)
    squared_length_of_x = torch.addcmul(squared_length, mean[..., 0], mean[..., 0], value=d)
    limit = (32 * torch.finfo(gram.dtype).eps) ** 2
    inverse_length = squared_length.rsqrt()
    inverse_length.masked_fill_(squared_length <= squared_length_of_x * limit, 0)
    # An overflowed length would turn the vector into zeros in silence; NaN says it aloud.
    inverse_length.masked_fill_(squared_length.isinf(), torch.nan)
    return inverse_length, squared_length_of_x.sqrt()
