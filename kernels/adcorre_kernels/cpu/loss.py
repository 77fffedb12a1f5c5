"""Host functions of Eq. 12 as a whole: its forward pass from samples or from sums, and both gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from adcorre_kernels.cpu.host import (
    address,
    compute_terms,
    gradient_of_x,
    logits_gradient,
    statistics,
    sum_logits,
    zeros,
)
from adcorre_kernels.settings import Settings

COUNT, RECORD, NAIVE = 1, 2, 4  # as in tables.py
SCALES = 5  # float64 numbers behind the tables, as `tables.terms` writes them


def forward(
    x: Tensor,
    logits: Tensor,
    targets: Tensor,
    ce_weight: Tensor | None,
    adjustment: Tensor | None,
    attention: Tensor | None,
    counts: Tensor | None,
    position: Tensor | None,
    lambd_tensor: Tensor | None,
    lambd: float,
    count: bool,
    record: bool,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 12: loss (), values (7 + 3 C,), tables.

    w is `attention` (C,), or that of an attention map whose counts (window, 2, C) and position (1,) are given; count:
    this step is in w; record: in the map too. `values`: fd, md, ed, nfd, ce; w (C,); samples of each class predicted
    right (C,) and seen (C,); the sums of cross-entropies and of weights. `tables`: G, H and `tables.terms`' scales.
    """
    targets = targets.to(torch.int64)
    own, ce = sum_logits(logits, targets, ce_weight, adjustment, settings.label_smoothing, settings.ignore_index)
    flat = statistics(x, targets, logits.shape[1], settings.ignore_index, settings.embedding_target)
    window = 0 if counts is None else counts.shape[0]
    flags = COUNT * count + RECORD * record + NAIVE * settings.naive
    step = (address(counts), address(position), window, own.data_ptr(), ce.data_ptr(), flags)
    lambd = lambd if lambd_tensor is None else float(lambd_tensor)
    _, k, d = x.shape
    values, tables = _terms(flat, attention, step, k, d, lambd, 1.0, settings, logits.shape[1])
    return _outputs(values, tables, logits, x)


def from_sums(
    flat: Tensor,
    ce: Tensor,
    attention: Tensor,
    lambd_tensor: Tensor | None,
    lambd: float,
    factor: float,
    k: int,
    d: int,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor]:
    """`forward` from a batch's sums, `flat` of `statistics` and ce (2,) of `logits_sums`, and w.

    factor: what the gradient is multiplied by. `values` end with w.
    """
    sums = ce.to(torch.float64).contiguous()
    lambd = lambd if lambd_tensor is None else float(lambd_tensor)
    step = (0, 0, 0, 0, sums.data_ptr(), NAIVE * settings.naive)
    values, tables = _terms(flat, attention, step, k, d, lambd, factor, settings)
    return _outputs(values[: 6 + attention.shape[0]], tables, ce, flat)


def sample_terms(x: Tensor, targets: Tensor, attention: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """fd, md, ed and nfd as one tensor (4,), and tables."""
    targets = targets.to(torch.int64)
    flat = statistics(x, targets, attention.shape[0], settings.ignore_index, settings.embedding_target)
    _, k, d = x.shape
    values, tables = _terms(flat, attention, (0, 0, 0, 0, 0, 0), k, d, 1.0, 1.0, settings)
    return values[1:5].to(flat.dtype, copy=True), tables


def gradients(
    x: Tensor,
    logits: Tensor | None,
    targets: Tensor,
    ce_weight: Tensor | None,
    adjustment: Tensor | None,
    fd: Tensor | None,
    md: Tensor | None,
    ed: Tensor | None,
    tables: Tensor,
    needs_x: bool,
    num_classes: int,
    settings: Settings,
) -> list[Tensor]:
    """Gradients of the logits, if given, and x, if `needs_x`. fd, md, ed: () upstream gradients, equal for the loss."""
    targets = targets.to(torch.int64)
    embedding_scale, *scales = tables[-SCALES * 8 // tables.element_size() :].view(torch.float64).tolist()
    results = []
    if logits is not None:
        assert fd is not None
        upstream, weights = float(fd) * scales[3], (ce_weight, adjustment)
        results.append(
            logits_gradient(logits, targets, upstream, *weights, settings.label_smoothing, settings.ignore_index)
        )
    if needs_x:
        up_fd, up_md, up_ed = (
            0.0 if one is None else float(one) * scale for one, scale in zip((fd, md, ed), scales, strict=False)
        )
        table = tables.data_ptr()
        addresses = (table, table + num_classes * x.shape[1] * x.shape[2] * tables.element_size())
        factors = (up_fd, up_md, up_ed * embedding_scale)
        targets_of = (settings.ignore_index, settings.embedding_target)
        results.append(gradient_of_x(x, targets, num_classes, factors, addresses, *targets_of))
    return results


def tables_size(num_classes: int, k: int, d: int, bytes_: int) -> int:
    return 2 * num_classes * k * d + SCALES * 8 // bytes_


def _terms(
    flat: Tensor,
    attention: Tensor | None,
    step: tuple[int, ...],
    k: int,
    d: int,
    lambd: float,
    factor: float,
    settings: Settings,
    num_classes: int = 0,
) -> tuple[Tensor, Tensor]:
    num_classes = num_classes if attention is None else attention.shape[0]
    bytes_ = flat.element_size()
    tables = zeros(tables_size(num_classes, k, d, bytes_), flat.dtype)
    feature, size = tables.data_ptr(), num_classes * k * d * bytes_
    term_targets = (settings.between_target, settings.mean_target, settings.embedding_target)
    weights = (lambd, settings.fd, settings.md, settings.ed, factor)
    addresses = (feature, feature + size, feature + 2 * size)
    return compute_terms(flat, attention, step, k, d, term_targets, weights, addresses, num_classes), tables


def _outputs(values: Tensor, tables: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if any(one.dtype == torch.float64 for one in inputs) else torch.float32
    return values[0].to(dtype, copy=True), values[1:].to(dtype, copy=True), tables
