"""Host code: buffers and launches. They depend on shapes only; no value is read back."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from adcorre_kernels.gpu import gpus, plan
from adcorre_kernels.gpu.cached_launch import cached_launch, specialization_key
from adcorre_kernels.gpu.class_sort import count_labels, place_samples
from adcorre_kernels.gpu.gram_per_sample import gram_statistics
from adcorre_kernels.gpu.logits import logits_gradient_kernel, logits_sums_kernel, reduce_logits
from adcorre_kernels.gpu.program_per_sample import program_embedding, program_gradient, program_statistics
from adcorre_kernels.gpu.reduce import reduce_slots
from adcorre_kernels.gpu.terms import terms_kernel
from adcorre_kernels.gpu.warp_per_sample import warp_gradient, warp_statistics


def statistics(x: Tensor, targets: Tensor, num_classes: int, ignore_index: int, embedding_target: float) -> Tensor:
    """`ClassStatistics.flat` of x (n, k, d): one pass over x and one over the programs' sums."""
    x, targets = readable(x), _labels(targets)
    n, k, d = x.shape
    device = x.device
    launches = plan.plan_statistics(n, k, d, num_classes, embedding_target, *_layout(x))
    if launches.local or launches.sort:
        scratch = torch.empty(launches.scratch, dtype=torch.int32, device=device)
    else:
        scratch = _sort_by_class(targets, num_classes, ignore_index, launches.tile.BS, launches.capacity)
    sums = torch.empty(launches.sums, dtype=torch.float32, device=device)
    flat = torch.empty(launches.flat, dtype=torch.float32, device=device)
    key = (device.index, specialization_key(x), specialization_key(targets), x.stride(0), x.stride(1), ignore_index)
    launch_statistics(launches, x, targets, scratch, sums, flat, num_classes, ignore_index, key)
    return flat


def launch_statistics(
    launches: plan.StatisticsPlan,
    x: Tensor,
    targets: Tensor,
    scratch: Tensor,
    sums: Tensor,
    flat: Tensor,
    num_classes: int,
    ignore_index: int,
    key: Hashable,
    flat_offset: int = 0,
    attention: tuple[Any, ...] = (None, None, None, None, 0, 0),
) -> None:
    """The launches of `statistics`, into given buffers. attention: the arguments of `attention_step`, to run it too.

    The result is written to `flat` from element `flat_offset` on.
    """
    n, sn, sk = x.shape[0], x.stride(0), x.stride(1)
    if launches.sort:
        sort_arguments = (targets, scratch, n, launches.sort.share, ignore_index, num_classes, launches.capacity)
        cached_launch(count_labels, launches.sort.grid, sort_arguments, launches.sort.counting, key)
        cached_launch(place_samples, launches.sort.grid, sort_arguments, launches.sort.placing, key)
    arguments = (
        x, targets, scratch, sums, sn, sk, n, launches.chunk, ignore_index, num_classes, launches.capacity,
        launches.offset,
    )  # fmt: skip
    if launches.tile.PK:
        kernel = gram_statistics
    else:
        kernel = program_statistics if launches.tile.BK else warp_statistics
    cached_launch(kernel, launches.grid, arguments, launches.streaming, key)
    if launches.grid[2] > 1 and n > 0:
        embedding_arguments = (x, targets, sums, sn, sk, n, launches.embedding_chunk, ignore_index, num_classes)
        cached_launch(program_embedding, (launches.embeddings,), embedding_arguments, launches.embedding, key)
    numbers = (launches.grid[0], launches.embeddings, launches.chunk, num_classes, launches.capacity, launches.offset)
    results = (sums, scratch, flat, *numbers, flat_offset, *attention)
    cached_launch(reduce_slots, launches.reduce_grid, results, launches.reduce, key)


def terms(
    flat: Tensor,
    attention: Tensor,
    k: int,
    d: int,
    between_target: float | None,
    mean_target: float,
    embedding_target: float,
) -> tuple[Tensor, Tensor]:
    """values (4,) = (fd, md, ed, nfd), and the tables G and H (C, k, d) and 2 / (n k^2): one launch, C <= 32.

    With `between_target` None, fd, nfd and G include only the pairs within classes.
    """
    num_classes = attention.shape[0]
    values, tables = flat.new_empty(4), flat.new_empty(2 * num_classes * k * d + 1)
    options = plan.plan_terms(k, d, num_classes, between_target, mean_target, embedding_target)
    flat, attention = flat.contiguous(), attention.contiguous()
    key = (flat.device.index, specialization_key(flat), specialization_key(attention))
    arguments = (flat, attention, None, 0.0, None, 1.0, values, None, tables, 0, num_classes)
    cached_launch(terms_kernel, (k + 1,), arguments, options, key)
    return values, tables


def gradient(
    x: Tensor,
    targets: Tensor,
    fd: Tensor | None,
    md: Tensor | None,
    ed: Tensor | None,
    feature: Tensor,
    mean: Tensor,
    embedding_scale: Tensor,
    ignore_index: int,
    embedding_target: float,
) -> Tensor:
    """dL/dx, contiguous and in x's dtype: one pass that reads x and writes the gradient.

    fd, md, ed: () each, the terms' upstream gradients; None: zero.
    """
    x, targets = readable(x), _labels(targets)
    n, k, d = x.shape
    device, num_classes = x.device, feature.shape[0]
    out = torch.empty((n, k, d), dtype=x.dtype, device=device)
    if n == 0:
        return out
    launches = plan.plan_gradient(n, k, d, num_classes, embedding_target, *_layout(x))
    order = targets  # not read
    if launches.sorted:
        order = torch.sort(_class_or_last(targets, num_classes, ignore_index)[0], stable=True)[1]
    tensors = (x, targets, order, fd, md, ed, feature.contiguous(), mean.contiguous(), embedding_scale)
    sn, sk = x.stride(0), x.stride(1)
    cached_launch(
        warp_gradient if launches.warp_per_sample else program_gradient,
        launches.grid,
        (*tensors, out, sn, sk, n, launches.chunk, ignore_index, num_classes),
        launches.options,
        (device.index, *map(specialization_key, tensors), sn, sk, ignore_index),
    )
    return out


def logits_sums(
    logits: Tensor,
    targets: Tensor,
    ce_weight: Tensor | None,
    adjustment: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """counts (2, C) int64, for each class samples predicted right and samples; ce (2,), sums of losses and weights.

    One pass over the logits, C <= 1,024, and one over the programs' sums.
    """
    logits, targets = readable(logits), _labels(targets)
    n, num_classes = logits.shape
    double = logits.dtype == torch.float64
    launches = plan.plan_logits(n, num_classes, label_smoothing, double)
    partials = torch.empty(launches.programs * (2 * num_classes + 2), dtype=torch.float64, device=logits.device)
    counts = torch.empty((2, num_classes), dtype=torch.int64, device=logits.device)
    ce = torch.empty(2, dtype=torch.float64 if double else torch.float32, device=logits.device)
    tensors = (logits, targets, readable(ce_weight), readable(adjustment))
    stride = logits.stride(0)
    key = (logits.device.index, *map(specialization_key, tensors), stride, ignore_index)
    arguments = (*tensors, partials, stride, n, launches.share, ignore_index, num_classes)
    cached_launch(logits_sums_kernel, (launches.programs,), arguments, launches.sums, key)
    results = (partials, counts, ce, launches.programs, num_classes)
    cached_launch(reduce_logits, (1,), results, launches.reduce, logits.device.index)
    return counts, ce


def logits_gradient(
    logits: Tensor,
    targets: Tensor,
    upstream: Tensor,
    ce_weight: Tensor | None,
    adjustment: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
) -> Tensor:
    """The gradient of the sum of cross-entropies times `upstream` (), contiguous and in the logits' dtype."""
    logits, targets = readable(logits), _labels(targets)
    n, num_classes = logits.shape
    out = torch.empty((n, num_classes), dtype=logits.dtype, device=logits.device)
    if n == 0:
        return out
    launches = plan.plan_logits(n, num_classes, label_smoothing, logits.dtype == torch.float64)
    tensors = (logits, targets, readable(ce_weight), readable(adjustment), upstream)
    stride = logits.stride(0)
    key = (logits.device.index, *map(specialization_key, tensors), stride, ignore_index)
    arguments = (*tensors, None, out, 0, stride, n, ignore_index, num_classes)
    cached_launch(logits_gradient_kernel, (launches.tiles,), arguments, launches.gradient, key)
    return out


def readable(tensor: Tensor | None) -> Any:
    """The tensor with its last axis contiguous, as kernels read it."""
    return tensor if tensor is None or tensor.stride(-1) == 1 else tensor.contiguous()


def _layout(x: Tensor) -> tuple[int, bool, str, int]:
    """The inputs of launch settings beside shapes: element size, alignment, the GPU's family and multiprocessors."""
    return x.element_size(), _aligned(x), gpus.family(x.device), gpus.multiprocessors(x.device)


def _aligned(x: Tensor) -> bool:
    """Whether rows of x and of the tables begin at multiples of 16 bytes, as known from Triton's specialization."""
    return all(size % 16 == 0 for size in (x.shape[2], x.stride(0), x.stride(1), x.data_ptr()))


def _labels(targets: Tensor) -> Tensor:
    targets = targets if targets.dtype in (torch.int64, torch.int32) else targets.to(torch.int64)
    return targets.contiguous()


def _class_or_last(targets: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Labels in a short dtype, `num_classes` for ignored samples; and whether a label is bad."""
    in_range = (targets >= 0) & (targets < num_classes)
    ignored = targets == ignore_index
    return torch.where(in_range & ~ignored, targets, num_classes).to(torch.int16), ~(in_range | ignored).all()


def _sort_by_class(targets: Tensor, num_classes: int, ignore_index: int, step: int, capacity: int) -> Tensor:
    """One order of all samples, as described in `adcorre_kernels.gpu.class_sort`."""
    n, device = targets.shape[0], targets.device
    labels, bad = _class_or_last(targets, num_classes, ignore_index)
    labels, permutation = torch.sort(labels, stable=True)
    classes = torch.arange(num_classes + 1, dtype=torch.int16, device=device)
    begin = torch.searchsorted(labels, classes)  # the last entry is the number of samples that take part
    count = begin.diff()
    steps = (count + (step - 1)) // step
    run_end = steps.cumsum(0)
    run_class = torch.searchsorted(run_end, torch.arange(capacity, device=device), right=True)
    shift = torch.cat(((run_end - steps) * step, run_end.new_full((1,), capacity * step))) - begin
    place = (torch.arange(n, device=device) + shift[labels.long()]).clamp(max=capacity * step)
    order = torch.full((capacity * step + 1,), -1, dtype=torch.int64, device=device).scatter(0, place, permutation)
    parts = (order[:-1], run_class, run_end, count, bad[None])
    return torch.cat([part.to(torch.int32) for part in parts])
