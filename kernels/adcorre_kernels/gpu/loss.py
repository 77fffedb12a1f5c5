"""Host code of Eq. 12 as a whole: four launches forward (six for many samples), two backward, one operator each.

Everything that depends only on settings, shapes, strides and alignments is computed once, in a cached plan.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adcorre_kernels.gpu import gpus, plan
from adcorre_kernels.gpu.cached_launch import KernelOptions, cached_launch, specialization_key
from adcorre_kernels.gpu.launch import launch_statistics, readable
from adcorre_kernels.gpu.logits import logits_gradient_kernel, logits_sums_kernel
from adcorre_kernels.gpu.program_per_sample import program_gradient
from adcorre_kernels.gpu.terms import terms_kernel
from adcorre_kernels.gpu.warp_per_sample import warp_gradient
from adcorre_kernels.settings import Settings

KEY = ()  # a plan determines the compiled variant


class LossPlan(NamedTuple):
    """Launches and buffer sizes. The last launch of `statistics` includes the step of the attention map."""

    logits: plan.LogitsPlan
    statistics: plan.StatisticsPlan
    terms: KernelOptions
    gradient: plan.GradientPlan
    partials: int  # offset in scratch of the partial sums over the logits, in float64 elements
    order: int  # offset in scratch of the order of the samples, in int32 elements
    scratch: int  # size in elements of 4 bytes
    values: int
    dtype: torch.dtype  # of loss and values
    tables: int
    readable: bool  # whether the kernels read every tensor as it is


@lru_cache(maxsize=1024)
def _terms_options(settings: Settings, k: int, d: int, num_classes: int) -> KernelOptions:
    term_targets = (settings.between_target, settings.mean_target, settings.embedding_target)
    options = plan.plan_terms.__wrapped__(k, d, num_classes, *term_targets)
    options.update(FD=settings.fd, MD=settings.md, ED=settings.ed, NAIVE=settings.naive)
    return options


@lru_cache(maxsize=1024)
def _plan(
    settings: Settings,
    count: bool,
    record: bool,
    num_classes: int,
    device: torch.device,
    family: str,
    multiprocessors: int,
    x: Any,
    logits: Any,
    *others: Any,
) -> LossPlan:
    """others: layouts of the other tensors. Each combination of layouts has its own compiled variants.

    `KernelOptions` hold the compiled kernels, so that the parts are planned anew, past their caches.
    """
    dtype, (n, k, d), (sn, sk, _), address = x
    aligned = all(size % 16 == 0 for size in (d, sn, sk, address))
    layout = (n, k, d, num_classes, settings.embedding_target, dtype.itemsize, aligned, family, multiprocessors)
    statistics, gradient = plan.plan_statistics.__wrapped__(*layout), plan.plan_gradient.__wrapped__(*layout)
    double = logits is not None and logits[0] == torch.float64
    logits_plan = plan.plan_logits.__wrapped__(n, num_classes, settings.label_smoothing, double)
    groups, columns = statistics.reduce_grid
    if logits is not None:
        statistics.reduce.update(BC=logits_plan.reduce["BC"], BL=logits_plan.reduce["BP"], COUNT=count, RECORD=record)
        groups += 1
    partials = plan.round_up(statistics.sums + statistics.flat, 32)
    order = partials + plan.round_up(logits_plan.programs * (2 * num_classes + 2) * 2 if logits is not None else 0, 32)
    return LossPlan(
        logits=logits_plan,
        statistics=statistics._replace(reduce_grid=(groups, columns)),
        terms=_terms_options.__wrapped__(settings, k, d, num_classes),
        gradient=gradient,
        partials=partials // 2,
        order=order,
        scratch=plan.round_up(order + statistics.scratch, 32),
        values=5 + 3 * num_classes + 2 if logits is not None else 4,
        dtype=torch.float64 if double else torch.float32,
        tables=2 * num_classes * k * d + (1 if logits is None else 2),
        readable=all(one is None or not one[2] or one[2][-1] == 1 for one in (x, logits, *others)),
    )


def _get_plan(
    settings: Settings, count: bool, record: bool, num_classes: int, x: Tensor, *others: Tensor | None
) -> LossPlan:
    layouts = [  # the properties that launches depend on
        None if one is None else (one.dtype, one.shape, one.stride(), one.data_ptr() % 16) for one in (x, *others)
    ]
    device = x.device
    return _plan(
        settings, count, record, num_classes, device, gpus.family(device), gpus.multiprocessors(device), *layouts
    )


def forward(
    x: Tensor,
    logits: Tensor | None,
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
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Eq. 12: loss (), values, tables. Without logits: None, fd, md, ed and nfd, and the tables of the terms.

    w is `attention` (C,), or computed from an attention map's counts (window, 2, C) and position (1,). count, record
    and `values`: as in `attention.attention_step`.
    """
    per_class: Any = attention if logits is None else logits
    num_classes = per_class.shape[-1]
    samples, state = (x, logits, targets, ce_weight, adjustment, attention), (counts, position, lambd_tensor)
    loss_plan = _get_plan(settings, count, record, num_classes, *samples, *state)
    if not loss_plan.readable:
        samples = tuple(map(readable, samples))
        x, logits, targets, ce_weight, adjustment, attention = samples
        loss_plan = _get_plan(settings, count, record, num_classes, *samples, *state)
    device, (n, k, _), ignore_index = x.device, x.shape, settings.ignore_index
    scratch = torch.empty(loss_plan.scratch, dtype=torch.float32, device=device)
    order = scratch.view(torch.int32)[loss_plan.order :]
    values = torch.empty(loss_plan.values, dtype=loss_plan.dtype, device=device)
    tables = torch.empty(loss_plan.tables, dtype=torch.float32, device=device)
    step: tuple[Any, ...] = (None, None, None, None, 0, 0)
    loss = None
    if logits is not None:
        loss = torch.empty((), dtype=loss_plan.dtype, device=device)
        partials = scratch.view(torch.float64)[loss_plan.partials :]
        tensors = (logits, targets, ce_weight, adjustment, partials)
        programs = loss_plan.logits.programs
        arguments = (*tensors, logits.stride(0), n, loss_plan.logits.share, ignore_index, num_classes)
        cached_launch(logits_sums_kernel, (programs,), arguments, loss_plan.logits.sums, KEY)
        step = (partials, counts, position, values, programs, 0 if counts is None else counts.shape[0])
    flat_offset = loss_plan.statistics.sums
    launch_statistics(
        loss_plan.statistics, x, targets, order, scratch, scratch, num_classes, ignore_index, KEY, flat_offset, step
    )
    results = (lambd, lambd_tensor, 1.0, values, loss, tables, flat_offset, num_classes)
    cached_launch(terms_kernel, (k + 1,), (scratch, attention, None, *results), loss_plan.terms, KEY)
    return loss, values, tables


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
    """`forward` from a batch's sums: `flat` from `statistics`, ce (2,) from `logits_sums`, and w. One launch.

    factor: factor of the tables, and so of the gradient.
    """
    num_classes, device = attention.shape[0], flat.device
    flat, ce, attention = map(readable, (flat, ce, attention))
    options = _terms_options(settings, k, d, num_classes)
    loss, values = ce.new_empty(()), ce.new_empty(5 + num_classes)
    tables = flat.new_empty(2 * num_classes * k * d + 2)
    tensors = (flat, attention, ce, lambd, lambd_tensor, factor, values, loss, tables, 0)
    key = (device.index, *map(specialization_key, (flat, attention, ce, lambd_tensor)))
    cached_launch(terms_kernel, (k + 1,), (*tensors, num_classes), options, key)
    return loss, values, tables


def backward(
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
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of logits and x, None for logits None and if `needs_x` is False.

    fd, md, ed: () upstream gradients of the terms; with logits, each is the upstream gradient of the loss.
    """
    samples = (x, logits, targets, ce_weight, adjustment)
    loss_plan = _get_plan(settings, False, False, num_classes, *samples)
    if not loss_plan.readable:
        samples = tuple(map(readable, samples))
        x, logits, targets, ce_weight, adjustment = samples
        loss_plan = _get_plan(settings, False, False, num_classes, *samples)
    device, n, ignore_index = x.device, x.shape[0], settings.ignore_index
    dlogits = None
    if logits is not None:
        dlogits = torch.empty(*logits.shape, dtype=logits.dtype, device=device)
        if n:
            inputs = (logits, targets, ce_weight, adjustment, fd, tables, dlogits)
            arguments = (*inputs, loss_plan.tables - 1, logits.stride(0), n, ignore_index, num_classes)
            cached_launch(logits_gradient_kernel, (loss_plan.logits.tiles,), arguments, loss_plan.logits.gradient, KEY)
    if not needs_x:
        return dlogits, None
    gradient = torch.empty(*x.shape, dtype=x.dtype, device=device)  # a torch.Size is parsed slowly
    if n:
        launch = loss_plan.gradient
        kernel = warp_gradient if launch.warp_per_sample else program_gradient
        tensors = (x, targets, targets, fd, md, ed, tables, None, None, gradient)
        numbers = (x.stride(0), x.stride(1), n, launch.chunk, ignore_index, num_classes)
        key = tuple([None if one is None else one.dtype for one in (fd, md, ed)])  # without logits, of any dtype
        cached_launch(kernel, launch.grid, (*tensors, *numbers), launch.options, key)
    return dlogits, gradient
