"""Host functions: they allocate, choose the number of threads and hand addresses to the kernels."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adcorre_kernels.cpu.compiled import kernel
from adcorre_kernels.cpu.threads import run, thread_count

DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}  # as in memory.py
PADDING = 3  # as in embeddings.py
SHARE = (64, 512)  # minimum and maximum number of samples of a share
SHARES = 32
HUGE_PAGE = 1 << 21  # bytes
ZEROED_BY_THE_SYSTEM = 1 << 20  # bytes: the system zeroes pages of larger buffers at the first access
ORDER, SUM, FINISH, ALL = range(4)  # as in embeddings.py and logits.py


def statistics(x: Tensor, targets: Tensor, num_classes: int, ignore_index: int, embedding_target: float) -> Tensor:
    """`ClassStatistics.flat` of x (n, k, d) and targets (n,) int64: one pass over x, ordered by class."""
    x = _rows(x)
    n, k, d = x.shape
    double = x.dtype == torch.float64
    dtype, bytes_ = (torch.float64, 8) if double else (torch.float32, 4)
    flat = zeros(num_classes * k * (2 * d + 1) + 2 * num_classes + 1, dtype)
    share = min(max(n // SHARES, SHARE[0]), SHARE[1])
    shares = -(-n // share)
    size = 2 * k * d + k + 1
    slots = torch.empty((2 * shares * size if shares > 1 else 0) + shares, dtype=torch.float64, device="cpu")
    index = torch.empty(num_classes + 1 + n, dtype=torch.int64, device="cpu")
    compute = kernel("statistics", double)

    def call(part: int, first: int, last: int) -> None:
        scratch = torch.empty(
            8 * size + ((5 * k + 1) * d + 6 * (k + PADDING) + k) * bytes_, dtype=torch.uint8, device="cpu"
        )
        compute(
            0.0, part, x.data_ptr(), x.stride(0) * x.element_size(), x.stride(1) * x.element_size(), DTYPES[x.dtype],
            targets.data_ptr(), targets.stride(0), n, k, d, num_classes, ignore_index, embedding_target, _limit(dtype),
            share, index.data_ptr(), slots.data_ptr(), slots.data_ptr() + 8 * shares, flat.data_ptr(),
            scratch.data_ptr(), first, last,
        )  # fmt: skip

    _run_parts(call, shares, x.numel())
    return flat


def terms(
    flat: Tensor,
    attention: Tensor,
    k: int,
    d: int,
    between_target: float | None,
    mean_target: float,
    embedding_target: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """values (4,) = (fd, md, ed, nfd), the tables G and H (C, k, d), 0 for absent classes, and 2 / (n k^2) ().

    With `between_target` None, fd, nfd and G cover only pairs within a class.
    """
    feature, mean = (zeros(attention.shape[0] * k * d, flat.dtype).view(-1, k, d) for _ in range(2))
    scales = torch.empty(5, dtype=torch.float64, device="cpu")
    term_targets = (between_target, mean_target, embedding_target)
    addresses = (feature.data_ptr(), mean.data_ptr(), scales.data_ptr())
    values = compute_terms(
        flat, attention, (0, 0, 0, 0, 0, 0), k, d, term_targets, (0.0, 0.0, 0.0, 0.0, 1.0), addresses
    )
    return values[1:5].to(flat.dtype, copy=True), feature, mean, scales[0].to(flat.dtype, copy=True)


def compute_terms(
    flat: Tensor,
    attention: Tensor | None,
    step: tuple[int, ...],
    k: int,
    d: int,
    term_targets: tuple[float | None, float, float],
    weights: tuple[float, ...],
    tables: tuple[int, int, int],
    num_classes: int = 0,
) -> Tensor:
    """The kernel's `values`. step: its arguments `counts` to `flags`; weights: `lambd` to `factor`."""
    num_classes = num_classes if attention is None else attention.shape[0]
    flat, attention = flat.contiguous(), double(attention)
    values = torch.empty(8 + 3 * num_classes, dtype=torch.float64, device="cpu")
    scratch = torch.empty((3 * d + num_classes) * k, dtype=torch.float64, device="cpu")
    between_target, mean_target, embedding_target = term_targets
    between = 0 if between_target is None else 1 if between_target == -1.0 else 2
    kernel("terms", flat.dtype == torch.float64)(
        0.0, flat.data_ptr(), address(attention), *step, num_classes, k, d, between, between_target or 0.0, mean_target,
        embedding_target, torch.finfo(flat.dtype).eps, *weights, values.data_ptr(), *tables, scratch.data_ptr(),
    )  # fmt: skip
    return values


def embedding_gradient(
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
    feature, mean = feature.contiguous(), mean.contiguous()
    up_fd, up_md, up_ed, _ = upstream.tolist()
    factors = (up_fd, up_md, up_ed * float(embedding_scale))
    tables = (feature.data_ptr(), mean.data_ptr())
    return gradient_of_x(x, targets, feature.shape[0], factors, tables, ignore_index, embedding_target)


def gradient_of_x(
    x: Tensor,
    targets: Tensor,
    num_classes: int,
    factors: tuple[float, float, float],
    tables: tuple[int, int],
    ignore_index: int,
    embedding_target: float,
) -> Tensor:
    """`embedding_gradient` from the factors of G, H and u, and the addresses of G and H."""
    x = _rows(x)
    n, k, d = x.shape
    dtype, bytes_ = (torch.float64, 8) if x.dtype == torch.float64 else (torch.float32, 4)
    out = _huge_pages(torch.empty((n, k, d), dtype=x.dtype, device="cpu"))
    compute = kernel("gradient", x.dtype == torch.float64)

    def call(first: int, last: int) -> None:
        scratch = torch.empty(((k + 2) * d + 2 * (k + PADDING) + k) * bytes_, dtype=torch.uint8, device="cpu")
        compute(
            0.0, x.data_ptr(), x.stride(0) * x.element_size(), x.stride(1) * x.element_size(), DTYPES[x.dtype],
            targets.data_ptr(), targets.stride(0), n, k, d, num_classes, ignore_index, embedding_target, _limit(dtype),
            *tables, *factors, out.data_ptr(), scratch.data_ptr(), first, last,
        )  # fmt: skip

    run(call, n, thread_count(x.numel(), n))
    return out


def logits_sums(
    logits: Tensor,
    targets: Tensor,
    ce_weight: Tensor | None,
    adjustment: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """counts (2, C) int64: correct predictions and samples per class; ce (2,): sums of cross-entropies and weights."""
    counts, sums = sum_logits(logits, targets, ce_weight, adjustment, label_smoothing, ignore_index)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return counts[: 2 * logits.shape[1]].view(2, -1).clone(), sums[:2].to(dtype, copy=True)


def sum_logits(
    logits: Tensor,
    targets: Tensor,
    ce_weight: Tensor | None,
    adjustment: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """Buffers that begin with the results of `logits_sums`, the second in float64."""
    logits = _rows(logits)
    n, num_classes = logits.shape
    ce_weight, adjustment = double(ce_weight), double(adjustment)
    counts = torch.empty(2 * num_classes + n, dtype=torch.int64, device="cpu")
    sums = torch.empty(2 + n, dtype=torch.float64, device="cpu")
    compute = kernel("logits_sums")

    def call(part: int, first: int, last: int) -> None:
        scratch = torch.empty(3 * num_classes, dtype=torch.float64, device="cpu")
        compute(
            part, logits.data_ptr(), logits.stride(0), logits.element_size(), DTYPES[logits.dtype], targets.data_ptr(),
            targets.stride(0), n, num_classes, address(ce_weight), address(adjustment), label_smoothing, ignore_index,
            sums.data_ptr() + 16, counts.data_ptr(), sums.data_ptr(), scratch.data_ptr(), first, last,
        )  # fmt: skip

    _run_parts(call, n, logits.numel())
    return counts, sums


def logits_gradient(
    logits: Tensor,
    targets: Tensor,
    upstream: Tensor | float,
    ce_weight: Tensor | None,
    adjustment: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
) -> Tensor:
    """`upstream` () times the gradient of the sum of cross-entropies, contiguous, in the logits' dtype."""
    logits = _rows(logits)
    n, num_classes = logits.shape
    ce_weight, adjustment, factor = double(ce_weight), double(adjustment), float(upstream)
    out = torch.empty((n, num_classes), dtype=logits.dtype, device="cpu")
    compute = kernel("logits_gradient")

    def call(first: int, last: int) -> None:
        scratch = torch.empty(3 * num_classes, dtype=torch.float64, device="cpu")
        compute(
            logits.data_ptr(), logits.stride(0), logits.element_size(), DTYPES[logits.dtype], targets.data_ptr(),
            targets.stride(0), n, num_classes, address(ce_weight), address(adjustment), label_smoothing, ignore_index,
            factor, out.data_ptr(), scratch.data_ptr(), first, last,
        )  # fmt: skip

    run(call, n, thread_count(logits.numel(), n))
    return out


def _run_parts(call: Callable[[int, int, int], None], tasks: int, elements: int) -> None:
    """call(part, first, last): in one call, or SUM on several threads between ORDER and FINISH."""
    threads = thread_count(elements, tasks)
    if threads == 1:
        call(ALL, 0, tasks)
    else:
        call(ORDER, 0, 0)
        run(partial(call, SUM), tasks, threads)
        call(FINISH, 0, 0)


def _rows(x: Tensor) -> Tensor:
    """x with contiguous rows; other strides are unchanged."""
    return x if x.stride(-1) == 1 else x.contiguous()


def double(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.to(torch.float64).contiguous()


def address(tensor: Tensor | None) -> int:
    """The address of a vector or of an attention map's state. Another device's address would crash the process."""
    if tensor is None:
        return 0
    if not tensor.is_cpu or not tensor.is_contiguous():
        raise ValueError(
            "class weights, logit adjustment, attention and attention map: expected contiguous tensors on the "
            f"embeddings' device, cpu; got one of shape {tuple(tensor.shape)} on {tensor.device}: move the loss there"
        )
    return tensor.data_ptr()


def _limit(dtype: torch.dtype) -> float:
    """A vector is constant if |x - mean|^2 is at most this times |x|^2."""
    return (32 * torch.finfo(dtype).eps) ** 2


def _huge_pages(out: Tensor) -> Tensor:
    """Ask for huge pages: the page faults of a new buffer take longer than the kernel."""
    start = -(-out.data_ptr() // HUGE_PAGE) * HUGE_PAGE
    size = (out.data_ptr() + out.nbytes - start) // HUGE_PAGE * HUGE_PAGE
    if size >= HUGE_PAGE and (madvise := _madvise()):
        madvise(start, size, 14)  # MADV_HUGEPAGE
    return out


@cache
def _madvise() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


def zeros(size: int, dtype: torch.dtype) -> Tensor:
    """Zeros; a large buffer takes memory only where it is accessed."""
    if size * dtype.itemsize < ZEROED_BY_THE_SYSTEM:
        return torch.zeros(size, dtype=dtype, device="cpu")
    return torch.from_numpy(np.zeros(size, np.float64 if dtype == torch.float64 else np.float32))
