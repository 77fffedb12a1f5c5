"""Host code: buffers, grids and launch settings. Everything follows from shapes; no value is read back."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from adcorre_kernels.finish import finish
from adcorre_kernels.narrow import narrow_gradient, narrow_statistics
from adcorre_kernels.reduce import reduce_slots
from adcorre_kernels.wide import wide_embedding, wide_gradient, wide_statistics

LOCAL_CLASSES = 32  # up to here a program orders its own samples; beyond, one sort orders all of them
SAMPLES_OF_SLOT = 16  # a slot costs two passes over 2 k d numbers: worth it from about so many samples
SLOT_NUMBERS = 1 << 24  # 64 MiB of slots at most
BY_CLASS = 8192  # up to so many samples a program takes one class of its chunk: launches are short then
NARROW_TILE = 8192  # numbers of BS samples that four warps can hold
WIDE_TILE = 8192  # numbers of a sample that one program can hold
GATHERED_CLASSES = 256  # up to here the backward pass takes the samples as they lie and the tables out of the caches


class Shape(NamedTuple):
    """How the streaming kernels cut a sample up: `narrow` if BK = 0, else tiles of BK embeddings."""

    W: int
    BS: int
    BK: int
    warps: int


@lru_cache(maxsize=256)
def shape_of(k: int, d: int, itemsize: int, pairs: bool) -> Shape:
    """The kernel for k embeddings of d entries; `pairs` if ED's target is not -1."""
    width = min(max(16, triton.next_power_of_2(d)), 128 if itemsize == 4 else 256)
    columns = k * triton.cdiv(d, width) * width
    samples = min(NARROW_TILE // columns, (512 if itemsize == 4 else 1024) // width, 16)
    if samples >= 4 and k <= (8 if pairs else 16):
        return Shape(width, 1 << (samples.bit_length() - 1), 0, 4)
    width = max(16, triton.next_power_of_2(d))
    block = triton.next_power_of_2(k)
    if block * width > WIDE_TILE:
        block = WIDE_TILE // 2 // width
    return Shape(width, 1, block, 4 if width * block <= 2048 else 8)


@lru_cache(maxsize=64)
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; an H100's where there is none, so that its grids are what tests run."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def statistics(x: Tensor, targets: Tensor, num_classes: int, ignore_index: int, embedding_target: float) -> Tensor:
    """`ClassStatistics.flat` of x (n, k, d): one pass over x and one over the programs' sums."""
    x, targets = _readable(x), _labels(targets)
    n, k, d = x.shape
    shape = shape_of(k, d, x.element_size(), embedding_target != -1.0)
    blocks = triton.cdiv(k, shape.BK) if shape.BK else 1
    local = num_classes <= LOCAL_CLASSES
    slot = triton.cdiv(2 * k * (d + 1), 32) * 32
    resident = processors(x.device) * (2 if shape.BK == 0 or shape.warps == 8 else 4)
    programs, groups = _programs(n, num_classes, slot, blocks, resident, local)
    if local:
        chunk = max(1, triton.cdiv(n, programs))
        capacity = chunk // shape.BS + num_classes
        scratch = torch.empty(
            programs * groups * blocks * (capacity * (shape.BS + 1) + 2 * num_classes + 1),
            dtype=torch.int32,
            device=x.device,
        )
    else:
        scratch, capacity = _sorted_order(targets, num_classes, ignore_index, shape.BS)
        chunk = triton.cdiv(capacity, programs)
    embeddings = programs * groups if blocks == 1 else triton.cdiv(n, _chunk_of_samples(n, x.device))
    offset = triton.cdiv(embeddings, 32) * 32
    slots = programs * num_classes if local else programs + num_classes
    sums = torch.empty(offset + slots * slot, dtype=torch.float32, device=x.device)
    strides = (x.stride(0), x.stride(1))
    label_lanes = {"BC": triton.next_power_of_2(max(8, num_classes)) if local else 8, "BL": 128}
    common = {"K": k, "D": d, "SLOT": slot, "TARGET": embedding_target, "LOCAL": local} | label_lanes
    arguments = (x, targets, scratch, sums, *strides, n, chunk, ignore_index, num_classes, capacity, offset)
    if shape.BK:
        wide_statistics[(programs, groups, blocks)](
            *arguments, BD=shape.W, BK=shape.BK, **common, num_warps=shape.warps, enable_fp_fusion=True
        )
    else:
        prefetch = x.element_size() == 2  # float32 has more bytes in flight and no register to spare
        narrow_statistics[(programs, groups)](
            *arguments, W=shape.W, BS=shape.BS, PREFETCH=prefetch, **common, num_warps=4, enable_fp_fusion=True
        )
    if blocks > 1 and n > 0:
        wide_embedding[(embeddings,)](
            x, targets, sums, *strides, n, _chunk_of_samples(n, x.device), ignore_index, num_classes,
            K=k, D=d, BD=shape.W, BK=shape.BK, TARGET=embedding_target, num_warps=shape.warps, enable_fp_fusion=True,
        )  # fmt: skip
    flat = torch.empty(num_classes * k * (2 * d + 1) + 2 * num_classes + 1, dtype=torch.float32, device=x.device)
    columns = 128 if local else 512
    reduce_slots[(num_classes, triton.cdiv(2 * k * d + k, columns))](
        sums, scratch, flat, programs, groups, embeddings, chunk, num_classes, capacity, offset,
        K=k, D=d, SLOT=slot, BS=shape.BS, BP=32 if local else 4, BJ=columns, BK=triton.next_power_of_2(k), LOCAL=local,
        num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return flat


def terms(
    flat: Tensor,
    attention: Tensor,
    k: int,
    d: int,
    between_target: float,
    mean_target: float,
    embedding_target: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """values (4,) = (fd, md, ed, nfd), the tables G and H (C, k, d), and 2 / (n k^2) (): one launch, C <= 32."""
    num_classes = attention.shape[0]
    values, embedding_scale = flat.new_empty(4), flat.new_empty(())
    feature, mean = (flat.new_empty(num_classes, k, d) for _ in range(2))
    rows = triton.next_power_of_2(max(8, num_classes))
    finish[(k + 1,)](
        flat.contiguous(), attention.contiguous(), values, feature, mean, embedding_scale, num_classes,
        K=k, D=d, BC=rows, BD=min(max(16, triton.next_power_of_2(d)), 4096 // rows), BETWEEN=between_target,
        MEAN=mean_target, EMBEDDING=embedding_target, num_warps=8, enable_fp_fusion=True,
    )  # fmt: skip
    return values, feature, mean, embedding_scale


def gradient(
    x: Tensor,
    targets: Tensor,
    upstream: Tensor,
    feature: Tensor,
    mean: Tensor,
    embedding_scale: Tensor,
    ignore_index: int,
    embedding_target: float,
) -> Tensor:
    """dL/dx, contiguous and in x's dtype: one pass that reads x and writes the gradient."""
    x, targets = _readable(x), _labels(targets)
    n, k, d = x.shape
    num_classes = feature.shape[0]
    out = torch.empty((n, k, d), dtype=x.dtype, device=x.device)
    if n == 0:
        return out
    shape = shape_of(k, d, x.element_size(), embedding_target != -1.0)
    upstream = upstream.to(torch.float32).contiguous()
    tables = (upstream, feature.contiguous(), mean.contiguous(), embedding_scale)
    by_class = num_classes > GATHERED_CLASSES
    order = torch.sort(_class_or_last(targets, num_classes, ignore_index)[0], stable=True)[1] if by_class else targets
    chunk = _chunk_of_samples(n, x.device, shape.BS)
    arguments = (x, targets, order, *tables, out, x.stride(0), x.stride(1), n, chunk, ignore_index, num_classes)
    common = {"K": k, "D": d, "TARGET": embedding_target, "ORDERED": by_class, "enable_fp_fusion": True}
    grid = (triton.cdiv(n, chunk),)
    if shape.BK:
        wide_gradient[grid](*arguments, BD=shape.W, BK=shape.BK, **common, num_warps=shape.warps)
    else:
        narrow_gradient[grid](*arguments, W=shape.W, BS=shape.BS, **common, num_warps=4)
    return out


def _readable(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


def _labels(targets: Tensor) -> Tensor:
    targets = targets if targets.dtype in (torch.int64, torch.int32) else targets.to(torch.int64)
    return targets.contiguous()


def _programs(n: int, num_classes: int, slot: int, blocks: int, resident: int, local: bool) -> tuple[int, int]:
    """Chunks of samples, and groups of classes, that the statistics are cut into; `resident` programs run at once."""
    if not local:
        return max(1, min(resident // blocks, triton.cdiv(n, 32))), 1
    limit = min(resident // blocks, SLOT_NUMBERS // (num_classes * slot))
    if n <= BY_CLASS:
        return max(1, min(limit // num_classes, triton.cdiv(n, 16))), num_classes
    return max(1, min(limit, n // (SAMPLES_OF_SLOT * num_classes))), 1


def _chunk_of_samples(n: int, device: torch.device, samples: int = 1) -> int:
    """Samples of a program that keeps nothing: some waves of programs, but not a launch per step."""
    return samples * max(1, min(16, n // (32 * samples * processors(device))))


def _class_or_last(targets: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Labels in a short dtype, `num_classes` for samples that take no part; and whether a label is bad."""
    in_range = (targets >= 0) & (targets < num_classes)
    ignored = targets == ignore_index
    return torch.where(in_range & ~ignored, targets, num_classes).to(torch.int16), ~(in_range | ignored).all()


def _sorted_order(targets: Tensor, num_classes: int, ignore_index: int, step: int) -> tuple[Tensor, int]:
    """One order of all samples as `adcorre_kernels.order` describes it, and its capacity in steps."""
    n, device = targets.shape[0], targets.device
    labels, bad = _class_or_last(targets, num_classes, ignore_index)
    labels, permutation = torch.sort(labels, stable=True)
    classes = torch.arange(num_classes + 1, dtype=torch.int16, device=device)
    begin = torch.searchsorted(labels, classes)  # the last one: samples that take part
    count = begin.diff()
    steps = (count + (step - 1)) // step
    run_end = steps.cumsum(0)
    capacity = n // step + min(num_classes, n) + 1
    run_class = torch.searchsorted(run_end, torch.arange(capacity, device=device), right=True)
    labels = labels.long()
    shift = torch.cat(((run_end - steps) * step, run_end.new_full((1,), capacity * step))) - begin
    place = (torch.arange(n, device=device) + shift[labels]).clamp(max=capacity * step)
    order = torch.full((capacity * step + 1,), -1, dtype=torch.int64, device=device).scatter(0, place, permutation)
    parts = (order[:-1], run_class, run_end, count, bad[None])
    return torch.cat([part.to(torch.int32) for part in parts]), capacity
