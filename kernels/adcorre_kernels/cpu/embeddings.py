"""The two passes over the embeddings: class statistics, and dL/dx from the tables. See kernels/README.md.

Addresses are int64, `zero` tells the type of the arithmetic (float32 or float64), and everything else is a number, so
that a kernel has one compiled variant for each of the two. float32 sums take up to GROUP samples and then enter float64.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from adcorre_kernels.cpu.memory import BFLOAT16, EXACT, SUMS, cast, fill, load, size_of, store, takes_part, view

GROUP = 64  # samples
ORDER, SUM, FINISH, ALL = range(4)  # what a call of `statistics` does


@njit(**SUMS)
def _sum(row, zero):
    total = zero
    for j in range(row.shape[0]):
        total += row[j]
    return total


@njit(**SUMS)
def _centre(row, mean, centred, zero):
    squared_length = zero
    for j in range(row.shape[0]):
        value = row[j] - mean
        centred[j] = value
        squared_length += value * value
    return squared_length


@njit(**SUMS)
def _dot(a, b, zero):
    total = zero
    for j in range(a.shape[0]):
        total += a[j] * b[j]
    return total


@njit(**SUMS)
def _add_to_class(centred, inverse, direction_sum, centred_sum, sample_sum):
    for j in range(centred.shape[0]):
        value = centred[j]
        direction = value * inverse
        direction_sum[j] += direction
        centred_sum[j] += value
        sample_sum[j] += direction


@njit(**SUMS)
def _add(row, factor, total):
    for j in range(row.shape[0]):
        total[j] += factor * row[j]


@njit(**EXACT)
def _inverse_length(squared_length, squared_length_of_x, limit, zero):
    """1 / |x - mean|; 0 for a constant vector. NaN on overflow: zero would hide it."""
    if squared_length <= squared_length_of_x * limit:
        return zero
    return cast(1, zero) / np.sqrt(squared_length) + zero * squared_length


@njit(**EXACT)
def _centre_row(row, centred, d, limit, zero):
    """Writes x - mean; returns 1 / |x - mean| and |x|^2."""
    mean = _sum(row, zero) / cast(d, zero)
    squared_length = _centre(row, mean, centred, zero)
    squared_length_of_x = squared_length + cast(d, zero) * mean * mean
    return _inverse_length(squared_length, squared_length_of_x, limit, zero), squared_length_of_x


@njit(**EXACT)
def _order(targets, stride, n, num_classes, ignore_index, begin, order, count):
    """Samples that take part, class by class: those of class a at order[begin[a]:begin[a + 1]], in their order in x."""
    labels = view(targets, n * stride, np.int64(0))
    fill(begin, 0)
    bad = False
    for i in range(n):
        label = labels[i * stride]
        if takes_part(label, num_classes, ignore_index):
            begin[label + 1] += 1
        elif label != ignore_index:
            bad = True
    for a in range(num_classes):
        count[a] = np.nan if bad else begin[a + 1]
        begin[a + 1] += begin[a]
    for i in range(n):
        label = labels[i * stride]
        if takes_part(label, num_classes, ignore_index):
            order[begin[label]] = i
            begin[label] += 1
    for a in range(num_classes, 0, -1):
        begin[a] = begin[a - 1]
    begin[0] = 0


@njit(**EXACT)
def _class_of(position, begin, num_classes):
    low, high = 0, num_classes
    while high - low > 1:
        middle = (low + high) // 2
        if begin[middle] <= position:
            low = middle
        else:
            high = middle
    return low


@njit(**EXACT)
def _add_sample(
    zero, x, stride_k, dtype, k, d, embedding_target, limit, direction_sum, centred_sum, totals, scratch
):  # fmt: skip
    """Adds one sample to the sums of its class; returns its part of ED's sum. `scratch`: u, a wide row, x - mean."""
    bytes_ = size_of(zero)
    sample_sum, wide, centred = view(scratch, d, zero), scratch + d * bytes_, scratch + 2 * d * bytes_
    inverse = view(centred + k * d * bytes_, k, zero)
    norm_sum = view(totals.ctypes.data + 16 * k * d, k + 1, 0.0)
    fill(sample_sum, zero)
    for l in range(k):
        offset = l * d * bytes_
        row = load(x + l * stride_k, dtype, d, wide, zero)
        values = view(centred + offset, d, zero)
        inverse[l], squared_length_of_x = _centre_row(row, values, d, limit, zero)
        norm_sum[l] += np.sqrt(squared_length_of_x)
        norm_sum[k] += inverse[l] != 0
        _add_to_class(
            values, inverse[l], view(direction_sum + offset, d, zero), view(centred_sum + offset, d, zero), sample_sum
        )
    if embedding_target == -1.0:
        return np.float64(_dot(sample_sum, sample_sum, zero))
    total = 0.0
    for l in range(k):
        for m in range(l):
            gram = _dot(view(centred + l * d * bytes_, d, zero), view(centred + m * d * bytes_, d, zero), zero)
            total += 2 * abs(gram * inverse[l] * inverse[m] - embedding_target)
    return total


@njit(**EXACT)
def _write(zero, totals, flat, a, num_classes, k, d, only_norms):
    """One class's sums into `flat`, whose order is S, M, A, the sums of |z|^2, counts, ED's sum."""
    table, bytes_ = num_classes * k * d, size_of(zero)
    if not only_norms:
        for part in range(2):
            row = view(flat + (part * table + a * k * d) * bytes_, k * d, zero)
            for j in range(k * d):
                row[j] = totals[part * k * d + j]
    norm_sum = view(flat + (2 * table + a * k) * bytes_, k, zero)
    for l in range(k):
        norm_sum[l] = totals[2 * k * d + l]
    view(flat + (2 * table + num_classes * k + a) * bytes_, 1, zero)[0] = totals[2 * k * d + k]


def statistics(
    zero, part, x, stride_n, stride_k, dtype, targets, stride_targets, n, k, d, num_classes, ignore_index,
    embedding_target, limit, share, index, embedding_sums, slots, flat, scratch, first, last,
):  # fmt: skip
    """Class sums in shares of `share` samples in class order, of which SUM computes [first, last). `flat` begins as 0.

    A class whose samples lie in one share is written to `flat`. One that goes on beyond it has its sum in one of the
    share's two slots (2 k d + k + 1 numbers, float64), the first if it began before; FINISH adds the slots up.
    `index` holds begin (C + 1) and order (n); `scratch` is this call's own.
    """
    size, bytes_ = 2 * k * d + k + 1, size_of(zero)
    begin, order = view(index, num_classes + 1, 0), view(index + 8 * (num_classes + 1), n, 0)
    rest = flat + num_classes * k * (2 * d + 1) * bytes_ + num_classes * bytes_  # counts and ED's sum
    if part == ORDER or part == ALL:
        _order(targets, stride_targets, n, num_classes, ignore_index, begin, order, view(rest, num_classes, zero))
    m = begin[num_classes]
    shares = view(embedding_sums, (n + share - 1) // share, 0.0)
    if part == SUM or part == ALL:
        for t in range(first, last):
            start, stop = t * share, min((t + 1) * share, m)
            shares[t] = 0.0
            a = _class_of(start, begin, num_classes)
            p = start
            while p < stop:
                while begin[a + 1] <= p:
                    a += 1
                end = min(begin[a + 1], stop)
                inside = begin[a] >= start and begin[a + 1] <= stop
                direct = inside and end - p <= GROUP  # straight into `flat`
                slot = slots + 8 * size * (2 * t + (begin[a] >= start))
                totals = view(scratch if inside else slot, size, 0.0)
                fill(totals, 0.0)
                partial = scratch + 8 * size
                rows = partial + 2 * k * d * bytes_
                direction_sum = flat + a * k * d * bytes_ if direct else partial
                centred_sum = flat + (num_classes + a) * k * d * bytes_ if direct else partial + k * d * bytes_
                while p < end:
                    group_end = min(p + GROUP, end)
                    if not direct:
                        fill(view(partial, 2 * k * d, zero), zero)
                    for q in range(p, group_end):
                        shares[t] += _add_sample(
                            zero, x + order[q] * stride_n, stride_k, dtype, k, d, embedding_target, limit,
                            direction_sum, centred_sum, totals, rows,
                        )  # fmt: skip
                    if not direct:
                        _add(view(partial, 2 * k * d, zero), 1.0, totals)
                    p = group_end
                if inside:
                    _write(zero, totals, flat, a, num_classes, k, d, direct)
    if part == FINISH or part == ALL:
        totals = view(scratch, size, 0.0)
        for a in range(num_classes):
            t, end = begin[a] // share, (begin[a + 1] - 1) // share
            if begin[a] < begin[a + 1] and t < end:
                fill(totals, 0.0)
                while t <= end:
                    _add(view(slots + 8 * size * (2 * t + (begin[a] >= t * share)), size, 0.0), 1.0, totals)
                    t += 1
                _write(zero, totals, flat, a, num_classes, k, d, False)
        embedding_sum = 0.0
        for t in range(shares.shape[0]):
            embedding_sum += shares[t]
        view(rest + num_classes * bytes_, 1, zero)[0] = embedding_sum


@njit(**SUMS)
def _pull(feature, factor, sample_sum, scale, centred, pull, zero):
    """pull = factor G + scale u; returns its product with x - mean."""
    along = zero
    for j in range(pull.shape[0]):
        value = factor * feature[j] + scale * sample_sum[j]
        pull[j] = value
        along += value * centred[j]
    return along


@njit(**SUMS)
def _project(pull, inverse, centred, along, mean, factor, out):
    for j in range(out.shape[0]):
        out[j] = inverse * pull[j] - along * centred[j] + factor * mean[j]


def gradient(
    zero, x, stride_n, stride_k, dtype, targets, stride_targets, n, k, d, num_classes, ignore_index,
    embedding_target, limit, feature, mean, up_fd, up_md, up_ed, out, scratch, first, last,
):  # fmt: skip
    """dL/dx of the samples [first, last); `up_ed` is the upstream gradient times 2 / (n k^2)."""
    bytes_ = size_of(zero)
    out_bytes = 2 if dtype <= BFLOAT16 else bytes_
    labels = view(targets, n * stride_targets, 0)
    sample_sum, pull, wide = view(scratch, d, zero), view(scratch + d * bytes_, d, zero), scratch + 2 * d * bytes_
    inverse = view(scratch + 3 * d * bytes_, k, zero)
    centred = scratch + (3 * d + k) * bytes_
    factor, mean_factor = cast(up_fd, zero), cast(up_md, zero)
    scale = cast(up_ed if k > 1 else 0 * up_ed, zero)  # one vector has no pair
    for i in range(first, last):
        a = labels[i * stride_targets]
        if not takes_part(a, num_classes, ignore_index):
            for l in range(k):
                fill(pull, zero * scale)
                store(pull, out + (i * k + l) * d * out_bytes, dtype)
            continue
        fill(sample_sum, zero)
        for l in range(k):
            values = view(centred + l * d * bytes_, d, zero)
            row = load(x + i * stride_n + l * stride_k, dtype, d, wide, zero)
            inverse[l], _ = _centre_row(row, values, d, limit, zero)
            if embedding_target == -1.0:
                _add(values, inverse[l], sample_sum)
        for l in range(k):
            values = view(centred + l * d * bytes_, d, zero)
            row_feature = view(feature + (a * k + l) * d * bytes_, d, zero)
            if embedding_target != -1.0:
                fill(sample_sum, zero)
                for m in range(k):
                    other = view(centred + m * d * bytes_, d, zero)
                    if m != l:
                        correlation = _dot(values, other, zero) * inverse[l] * inverse[m] - embedding_target
                        _add(other, inverse[m] * cast(np.sign(correlation), zero), sample_sum)
            along = _pull(row_feature, factor, sample_sum, scale, values, pull, zero)
            address = out + (i * k + l) * d * out_bytes
            row = view(wide if dtype <= BFLOAT16 else address, d, zero)
            row_mean = view(mean + (a * k + l) * d * bytes_, d, zero)
            _project(pull, inverse[l], values, along * inverse[l] * inverse[l] * inverse[l], row_mean, mean_factor, row)
            if dtype <= BFLOAT16:
                store(row, address, dtype)
