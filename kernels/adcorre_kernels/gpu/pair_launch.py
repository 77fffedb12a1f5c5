"""Host code of FD over all pairs: buffers and launches. They depend on shapes only; no value is read back."""

from __future__ import annotations

import torch
from torch import Tensor

from adcorre_kernels.gpu import gpus, pair_plan, pairs
from adcorre_kernels.gpu.launch import _aligned, _labels, readable
from adcorre_kernels.gpu.pair_plan import PairPlan

_LARGEST_WEIGHT = 128.0  # for the gradient's left factor, whose pieces are float16


def pair_values(
    x: Tensor,
    targets: Tensor,
    attention: Tensor,
    between_target: float,
    ignore_index: int,
    precision: str,
    row_start: int,
    row_stop: int,
    complete: bool = False,
) -> Tensor:
    """(2,): sums over rows i, all j != i and all l of (w_i + w_j) |Phi - c| and of |Phi - c|.

    Over pairs of different classes, or over all pairs if `complete` (used by tests). If the rows are all samples, each
    pair is computed once.
    """
    plan = _plan(x, between_target, precision, complete, row_start, row_stop)
    if row_start == row_stop:
        return x.new_zeros(2, dtype=torch.float32)
    table, labels, weights = _tables(plan, x, targets, attention.to(torch.float32), ignore_index)
    partial = torch.empty((*plan.values_grid, 2), dtype=torch.float32, device=x.device)
    pairs.pair_values[plan.values_grid](
        table, labels, weights, partial, row_start, row_stop, plan.padded, plan.tiles, plan.group, **plan.values
    )
    return partial.flatten(0, 1).sum(0, dtype=torch.float64).to(torch.float32)


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
    complete: bool = False,
) -> Tensor:
    """(rows, k, d) float32: scale d/dx of `pair_values` over all rows, of the rows [row_start, row_stop)."""
    n, k, d = x.shape
    plan = _plan(x, between_target, precision, complete, row_start, row_stop)
    out = torch.empty((row_stop - row_start, k, d), dtype=torch.float32, device=x.device)
    if row_start == row_stop:
        return out
    attention = attention.to(torch.float32)
    largest = attention.abs().amax().clamp(min=torch.finfo(torch.float32).smallest_normal)
    table, labels, weights = _tables(plan, x, targets, attention / largest * _LARGEST_WEIGHT, ignore_index)
    pairs.pair_gradient[plan.gradient_grid](
        table, labels, weights, out, row_start, row_stop, plan.padded, **plan.gradient
    )
    x, targets = readable(x), _labels(targets)
    pairs.pair_project[plan.project_grid](
        x, targets, scale.to(torch.float32), largest * (2 / (_LARGEST_WEIGHT * pairs.SCALE.value)), out, x.stride(0),
        x.stride(1), n, row_start, row_stop, ignore_index, attention.shape[0],
        enable_fp_fusion=_aligned(x), **plan.project,
    )  # fmt: skip
    return out


def _plan(x: Tensor, between_target: float, precision: str, complete: bool, row_start: int, row_stop: int) -> PairPlan:
    family = gpus.family(x.device)
    return pair_plan.plan_pairs(*x.shape, precision, between_target, complete, row_start, row_stop, family)


def _tables(
    plan: PairPlan, x: Tensor, targets: Tensor, weights: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """z in pieces (k, pieces, padded, DP), and each sample's label and weight (padded,)."""
    x, targets = readable(x), _labels(targets)
    table = torch.empty(plan.table, dtype=plan.dtype, device=x.device)
    labels = torch.empty(plan.padded, dtype=torch.int32, device=x.device)
    sample_weights = torch.empty(plan.padded, dtype=torch.float32, device=x.device)
    pairs.pair_tables[plan.tables_grid](
        x, targets, weights.contiguous(), table, labels, sample_weights, x.stride(0), x.stride(1), x.shape[0],
        plan.padded, ignore_index, weights.shape[0], enable_fp_fusion=_aligned(x),
        **plan.tables,
    )  # fmt: skip
    return table, labels, sample_weights
