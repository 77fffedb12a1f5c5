"""The two steps over the logits: cross-entropy sums with prediction counts, and the gradient. See kernels/README.md.

Every dtype is computed in float64, row by row, so that there is one compiled variant of each.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from adcorre_kernels.cpu.memory import EXACT, SUMS, bitcast, dot, fill, load, store, takes_part, view

LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # the first has 21 zero bits at its end
ROUND = 6755399441055744.0  # 1.5 * 2^52: added to a small number, it leaves the nearest integer in the low bits
ORDER, SUM, FINISH, ALL = range(4)  # what a call of `logits_sums` does; ORDER: nothing


@njit(fastmath={"contract"}, **EXACT)
def _exp(x):
    """exp(x) for x <= 0, 0 below -700. Without a call in it, loops become vector code; reassociation would break it."""
    shifted = x * 1.4426950408889634 + ROUND
    whole = shifted - ROUND
    r = (x - whole * LN2_HIGH) - whole * LN2_LOW
    p = r * (1 / 479001600) + 1 / 39916800  # Taylor: r is at most ln(2) / 2
    p = p * r + 1 / 3628800
    p = p * r + 1 / 362880
    p = p * r + 1 / 40320
    p = p * r + 1 / 5040
    p = p * r + 1 / 720
    p = p * r + 1 / 120
    p = p * r + 1 / 24
    p = p * r + 1 / 6
    p = p * r + 1 / 2
    p = (p * r + 1) * r + 1
    power = bitcast((bitcast(shifted, 0) + 1023) << 52, 0.0)
    return 0.0 if x < -700.0 else p * power


@njit(**SUMS)
def _sum_of_exp(row, largest, out):
    total = 0.0
    for j in range(row.shape[0]):
        value = _exp(row[j] - largest)
        out[j] = value
        total += value
    return total


@njit(**SUMS)
def _sum(row):
    total = 0.0
    for j in range(row.shape[0]):
        total += row[j]
    return total


@njit(**EXACT)
def _argmax(row):
    """The first of the largest entries; NaN counts as the largest, as in `torch.argmax`."""
    index, largest = 0, row[0]
    for j in range(1, row.shape[0]):
        if not row[j] <= largest and largest == largest:
            index, largest = j, row[j]
    return index


@njit(**EXACT)
def _adjusted(row, adjustment, buffer):
    if adjustment == 0:
        return row
    out, shift = view(buffer, row.shape[0], 0.0), view(adjustment, row.shape[0], 0.0)
    for j in range(row.shape[0]):
        out[j] = row[j] + shift[j]
    return out


def logits_sums(
    part, logits, stride, bytes_, dtype, targets, stride_targets, n, num_classes, weight, adjustment, smoothing,
    ignore_index, losses, counts, ce, scratch, first, last,
):  # fmt: skip
    """SUM: cross-entropies of the samples [first, last) into `losses`, and 1 into `counts`' tail where predicted right.

    FINISH: `counts` (2, C), predicted right and seen, and `ce` (2,), the sums of cross-entropies and of weights, all in
    the samples' order. `counts` has n numbers more, the first pass's; `weight` and `adjustment` are float64, or 0.
    """
    labels, own, right = (
        view(targets, n * stride_targets, 0),
        view(losses, n, 0.0),
        view(counts, 2 * num_classes + n, 0),
    )
    w = view(weight, num_classes if weight else 0, 0.0)
    if part == SUM or part == ALL:
        total_weight = _sum(w) if weight else np.float64(num_classes)
        for i in range(first, last):
            label = labels[i * stride_targets]
            if not takes_part(label, num_classes, ignore_index):
                continue
            row = load(logits + i * stride * bytes_, dtype, num_classes, scratch)
            prediction = _argmax(row)
            right[2 * num_classes + i] = prediction == label
            row = _adjusted(row, adjustment, scratch + 8 * num_classes)
            largest = row[_argmax(row) if adjustment else prediction]
            log_sum = largest + np.log(_sum_of_exp(row, largest, view(scratch + 16 * num_classes, num_classes, 0.0)))
            own[i] = (1 - smoothing) * (w[label] if weight else 1.0) * (log_sum - row[label])
            if smoothing:
                rest = total_weight * log_sum - (dot(w, row) if weight else _sum(row))
                own[i] += smoothing / num_classes * rest
    if part == FINISH or part == ALL:
        fill(view(counts, 2 * num_classes, 0), 0)
        ce_sum, weight_sum = 0.0, 0.0
        for i in range(n):
            label = labels[i * stride_targets]
            if takes_part(label, num_classes, ignore_index):
                right[label] += right[2 * num_classes + i]
                right[num_classes + label] += 1
                ce_sum += own[i]
                weight_sum += w[label] if weight else 1.0
            elif label != ignore_index:
                weight_sum = np.nan
        out = view(ce, 2, 0.0)
        out[0], out[1] = ce_sum, weight_sum


def logits_gradient(
    logits, stride, bytes_, dtype, targets, stride_targets, n, num_classes, weight, adjustment, smoothing,
    ignore_index, upstream, out, scratch, first, last,
):  # fmt: skip
    """`upstream` times the gradient of the sum of cross-entropies, for the samples [first, last)."""
    labels = view(targets, n * stride_targets, 0)
    w = view(weight, num_classes if weight else 0, 0.0)
    share = smoothing / num_classes
    total_weight = _sum(w) if weight else np.float64(num_classes)
    gradient = view(scratch + 16 * num_classes, num_classes, 0.0)
    for i in range(first, last):
        label = labels[i * stride_targets]
        if takes_part(label, num_classes, ignore_index):
            row = load(logits + i * stride * bytes_, dtype, num_classes, scratch)
            row = _adjusted(row, adjustment, scratch + 8 * num_classes)
            own = (1 - smoothing) * (w[label] if weight else 1.0)
            factor = upstream * (own + share * total_weight) / _sum_of_exp(row, row[_argmax(row)], gradient)
            for j in range(num_classes):
                gradient[j] = gradient[j] * factor - upstream * share * (w[j] if weight else 1.0)
            gradient[label] -= upstream * own
        else:
            fill(gradient, 0 * upstream)
        store(gradient, out + i * num_classes * bytes_, dtype)
