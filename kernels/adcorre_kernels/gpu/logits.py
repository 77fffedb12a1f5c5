"""The steps over the logits: prediction counts and the sum of cross-entropies, and the gradient of that sum.

A tile is BN samples x BC classes. Programs write partial sums, (P, 2 C + 2) float64: for each class the samples
predicted right and the samples, then the sums of cross-entropies and of weights, the latter NaN if a label is bad. They
are added in the order of the programs, without atomics: the result is deterministic.
"""

import triton
import triton.language as tl

from adcorre_kernels.gpu.rows import DO_NOT_SPECIALIZE, labels_of


@triton.jit
def _logits(logits_ptr, index, label, stride, C, BC: tl.constexpr, WORK: tl.constexpr):
    """(BN, BC): -inf beyond C and for ignored samples."""
    column = tl.arange(0, BC)
    at = logits_ptr + index.to(tl.int64)[:, None] * stride + column[None, :]
    inside = (label >= 0)[:, None] & (column < C)[None, :]
    return tl.load(at, mask=inside, other=float("-inf")).to(WORK)


@triton.jit
def _adjusted(logits, adjustment_ptr, C, BC: tl.constexpr, WORK: tl.constexpr):
    if adjustment_ptr is not None:
        column = tl.arange(0, BC)
        logits += tl.load(adjustment_ptr + column, mask=column < C, other=0.0).to(WORK)[None, :]
    return logits


@triton.jit
def _weights(weight_ptr, C, BC: tl.constexpr, WORK: tl.constexpr):
    """(BC,): the classes' weights, 0 beyond C."""
    column = tl.arange(0, BC)
    weights = tl.where(column < C, 1.0, 0.0).to(WORK)
    if weight_ptr is not None:
        weights = tl.load(weight_ptr + column, mask=column < C, other=0.0).to(WORK)
    return weights


@triton.jit
def _predicted(logits, BC: tl.constexpr):
    """(BN,), as `torch.argmax`: the first of the largest; NaN counts as the largest."""
    column = tl.arange(0, BC)[None, :]
    is_nan = logits != logits
    any_nan = tl.max(is_nan.to(tl.int32), 1)[:, None] > 0
    largest = tl.max(tl.where(is_nan, float("-inf"), logits), 1)[:, None]
    return tl.min(tl.where(tl.where(any_nan, is_nan, logits == largest), column, BC), 1)


@triton.jit(do_not_specialize=[*DO_NOT_SPECIALIZE, "share"])
def logits_sums_kernel(
    logits_ptr,
    targets_ptr,
    weight_ptr,
    adjustment_ptr,
    partials_ptr,
    stride,
    n,
    share,
    ignore_index,
    C,
    BN: tl.constexpr,
    BC: tl.constexpr,
    SMOOTHING: tl.constexpr,
    DOUBLE: tl.constexpr,
):
    """The partial sums of samples [share p, share (p + 1))."""
    WORK: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    column = tl.arange(0, BC)
    weights = _weights(weight_ptr, C, BC, WORK)
    smoothing = tl.full((), SMOOTHING, WORK)
    correct = tl.zeros((BN, BC), tl.int32)
    seen = tl.zeros((BN, BC), tl.int32)
    losses = tl.zeros((BN,), WORK)
    divisors = tl.zeros((BN,), WORK)
    bad = tl.zeros((BN,), tl.int32)
    low = tl.program_id(0) * share
    high = tl.minimum(low + share, n)
    for start in range(low, high, BN):
        index = start + tl.arange(0, BN)
        label, is_bad = labels_of(targets_ptr, index, index < high, ignore_index, C)
        bad += is_bad.to(tl.int32)
        logits = _logits(logits_ptr, index, label, stride, C, BC, WORK)
        own = label[:, None] == column[None, :]
        seen += own.to(tl.int32)
        correct += (own & (_predicted(logits, BC) == label)[:, None]).to(tl.int32)
        scores = _adjusted(logits, adjustment_ptr, C, BC, WORK)
        scores -= tl.max(scores, 1)[:, None]
        log_sum = tl.log(tl.sum(tl.exp(scores), 1))
        weight = tl.sum(tl.where(own, weights[None, :], 0.0), 1)
        loss = weight * (log_sum - tl.sum(tl.where(own, scores, 0.0), 1))
        if SMOOTHING > 0:
            products = tl.where((column < C)[None, :], weights[None, :] * scores, 0.0)
            every = tl.sum(weights, 0) * log_sum - tl.sum(products, 1)
            loss = (1 - smoothing) * loss + smoothing / C * every
        losses += tl.where(label >= 0, loss, 0.0)
        divisors += weight
    row = partials_ptr + tl.program_id(0) * (2 * C + 2)
    tl.store(row + column, tl.sum(correct, 0).to(tl.float64), mask=column < C)
    tl.store(row + C + column, tl.sum(seen, 0).to(tl.float64), mask=column < C)
    tl.store(row + 2 * C, tl.sum(losses.to(tl.float64), 0))
    divisor = tl.sum(divisors.to(tl.float64), 0)
    tl.store(row + 2 * C + 1, tl.where(tl.max(bad, 0) > 0, float("nan"), divisor))


@triton.jit
def add_partials(partials_ptr, programs, C, BC: tl.constexpr, BP: tl.constexpr):
    """Sums over all programs, float64: samples predicted right and samples (BC,); sums of cross-entropies, weights."""
    column = tl.arange(0, BC)
    correct = tl.zeros((BP, BC), tl.float64)
    seen = tl.zeros((BP, BC), tl.float64)
    losses = tl.zeros((BP,), tl.float64)
    divisors = tl.zeros((BP,), tl.float64)
    for start in range(0, programs, BP):
        program = start + tl.arange(0, BP)
        used = program < programs
        row = partials_ptr + program * (2 * C + 2)
        inside = used[:, None] & (column < C)[None, :]
        correct += tl.load(row[:, None] + column[None, :], mask=inside, other=0.0)
        seen += tl.load(row[:, None] + (C + column)[None, :], mask=inside, other=0.0)
        losses += tl.load(row + 2 * C, mask=used, other=0.0)
        divisors += tl.load(row + 2 * C + 1, mask=used, other=0.0)
    return tl.sum(correct, 0), tl.sum(seen, 0), tl.sum(losses, 0), tl.sum(divisors, 0)


@triton.jit(do_not_specialize=["programs", "C"])
def reduce_logits(partials_ptr, counts_ptr, ce_ptr, programs, C, BC: tl.constexpr, BP: tl.constexpr):
    """counts (2, C) and ce (2,), by one program."""
    column = tl.arange(0, BC)
    correct, seen, loss, divisor = add_partials(partials_ptr, programs, C, BC, BP)
    tl.store(counts_ptr + column, correct.to(tl.int64), mask=column < C)
    tl.store(counts_ptr + C + column, seen.to(tl.int64), mask=column < C)
    tl.store(ce_ptr, loss.to(ce_ptr.dtype.element_ty))
    tl.store(ce_ptr + 1, divisor.to(ce_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=DO_NOT_SPECIALIZE, do_not_specialize_on_alignment=["upstream_ptr"])
def logits_gradient_kernel(
    logits_ptr,
    targets_ptr,
    weight_ptr,
    adjustment_ptr,
    upstream_ptr,
    scale_ptr,
    out_ptr,
    scale_offset,
    stride,
    n,
    ignore_index,
    C,
    BN: tl.constexpr,
    BC: tl.constexpr,
    SMOOTHING: tl.constexpr,
    DOUBLE: tl.constexpr,
):
    """upstream (), times the scale if there is one, times the gradient of the sum of cross-entropies."""
    WORK: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    column = tl.arange(0, BC)
    upstream = tl.load(upstream_ptr).to(WORK)
    if scale_ptr is not None:
        upstream *= tl.load(scale_ptr + scale_offset).to(WORK)
    index = tl.program_id(0) * BN + tl.arange(0, BN)
    label, _bad = labels_of(targets_ptr, index, index < n, ignore_index, C)
    logits = _logits(logits_ptr, index, label, stride, C, BC, WORK)
    scores = _adjusted(logits, adjustment_ptr, C, BC, WORK)
    probability = tl.exp(scores - tl.max(scores, 1)[:, None])
    probability /= tl.sum(probability, 1)[:, None]
    weights = upstream * _weights(weight_ptr, C, BC, WORK)[None, :]
    own = tl.where(label[:, None] == column[None, :], weights, 0.0)
    if SMOOTHING > 0:
        smoothing = tl.full((), SMOOTHING, WORK)
        every = smoothing / C * weights
        own *= 1 - smoothing
        gradient = probability * (tl.sum(own, 1)[:, None] + tl.sum(every, 1)[:, None]) - every - own
    else:
        gradient = probability * tl.sum(own, 1)[:, None] - own
    gradient = tl.where((label >= 0)[:, None], gradient, 0 * upstream)
    out = out_ptr + index.to(tl.int64)[:, None] * C + column[None, :]
    tl.store(out, gradient.to(out_ptr.dtype.element_ty), mask=(index < n)[:, None] & (column < C)[None, :])
