"""The two passes over the embeddings: class statistics, and dL/dx from the tables. See kernels/README.md.

Addresses are int64, `zero` tells the type of the arithmetic (float32 or float64), and everything else is a number, so
that a kernel has one compiled variant for each of the two. float32 sums take up to GROUP samples, then enter float64.

A loop is vector code only if few of its arrays can overlap: LLVM compares at most 8 pairs of addresses.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from adcorre_kernels.cpu.memory import (
    BFLOAT16,
    EXACT,
    SUMS,
    cast,
    fill,
    prefetch,
    size_of,
    store,
    takes_part,
    view,
    widen,
)

GROUP = 63  # samples: float32 sums of so many enter float64
ORDER, SUM, FINISH, ALL = range(4)  # what a call of `statistics` does


@njit(**SUMS)
def _sum(row, zero):
    total = zero
    for j in range(row.shape[0]):
        total += row[j]
    return total


@njit(**SUMS)
def _dot(a, b, zero):
    total = zero
    for j in range(a.shape[0]):
        total += a[j] * b[j]
    return total


@njit(**SUMS)
def _squared_length(row, mean, zero):
    total = zero
    for j in range(row.shape[0]):
        value = row[j] - mean
        total += value * value
    return total


@njit(**SUMS)
def _squared_length_and_dot(row, mean, other, zero):
    """Of x - mean: its squared length and its product with another row."""
    total, dot = zero, zero
    for j in range(row.shape[0]):
        value = row[j] - mean
        total += value * value
        dot += value * other[j]
    return total, dot


@njit(**SUMS)
def _centred_dot(a, mean_a, b, mean_b, zero):
    total = zero
    for j in range(a.shape[0]):
        total += (a[j] - mean_a) * (b[j] - mean_b)
    return total


@njit(**SUMS)
def _add(row, factor, total):
    for j in range(row.shape[0]):
        total[j] += factor * row[j]


@njit(**SUMS)
def _add_centred(row, mean, factor, total):
    for j in range(row.shape[0]):
        total[j] += factor * (row[j] - mean)


@njit(**SUMS)
def _add_four_centred(a, b, c, d, mean, inverse, total):
    for j in range(total.shape[0]):
        total[j] += (inverse[0] * (a[j] - mean[0]) + inverse[1] * (b[j] - mean[1])) + (
            inverse[2] * (c[j] - mean[2]) + inverse[3] * (d[j] - mean[3])
        )


@njit(**SUMS)
def _add_to_class(row, mean, inverse, direction_sum, centred_sum):
    for j in range(row.shape[0]):
        value = row[j] - mean
        direction_sum[j] += value * inverse
        centred_sum[j] += value


@njit(**SUMS)
def _add_three_to_class(a, b, c, mean_a, mean_b, mean_c, inverse_a, inverse_b, inverse_c, direction_sum, centred_sum):
    for j in range(a.shape[0]):
        x, y, z = a[j] - mean_a, b[j] - mean_b, c[j] - mean_c
        direction_sum[j] += x * inverse_a + y * inverse_b + z * inverse_c
        centred_sum[j] += x + y + z


@njit(**EXACT)
def _inverse_length(squared_length, squared_length_of_x, limit, zero):
    """1 / |x - mean|; 0 for a constant vector. NaN on overflow: zero would hide it."""
    constant = squared_length <= squared_length_of_x * limit  # on overflow too
    return (zero if constant else cast(1, zero) / np.sqrt(squared_length)) + zero * squared_length


@njit(**EXACT)
def _widen_sample(x, stride_k, dtype, k, d, rows, zero):
    """Address and stride of a sample's k rows as numbers of `zero`'s type: half precision goes to `rows`."""
    if dtype > BFLOAT16:
        return x, stride_k
    stride = d * size_of(zero)
    for l in range(k):
        widen(view(x + l * stride_k, d, np.uint16(0)), dtype, view(rows + l * stride, d, zero))
    return rows, stride


@njit(**EXACT)
def _sum_of_directions(rows, stride, k, d, mean, inverse, total, zero):
    """u, four rows at a time; `mean` and `inverse` have three zeros behind the k numbers."""
    fill(total, zero)
    for l in range(0, k, 4):
        a, b, c, e = (
            view(rows + l * stride, d, zero),
            view(rows + min(l + 1, k - 1) * stride, d, zero),
            view(rows + min(l + 2, k - 1) * stride, d, zero),
            view(rows + min(l + 3, k - 1) * stride, d, zero),
        )
        _add_four_centred(a, b, c, e, mean[l : l + 4], inverse[l : l + 4], total)


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
def _measure_sample(zero, rows, stride, following, k, d, embedding_target, limit, mean, inverse, totals, sample_sum):
    """Means and inverse lengths of a sample, its lengths into `totals`; returns its part of ED's sum.

    The sample at `following` is fetched meanwhile.
    """
    for l in range(k):
        prefetch(following + l * stride, d * size_of(zero))
        row = view(rows + l * stride, d, zero)
        mean[l] = _sum(row, zero) / cast(d, zero)
        squared_length = _squared_length(row, mean[l], zero)
        squared_length_of_x = squared_length + cast(d, zero) * mean[l] * mean[l]
        inverse[l] = _inverse_length(squared_length, squared_length_of_x, limit, zero)
        totals[2 * k * d + l] += np.sqrt(squared_length_of_x)
        totals[2 * k * d + k] += inverse[l] != 0
    if embedding_target == -1.0:
        _sum_of_directions(rows, stride, k, d, mean, inverse, sample_sum, zero)
        return np.float64(_dot(sample_sum, sample_sum, zero))
    total = 0.0
    for l in range(k):
        for m in range(l):
            a, b = view(rows + l * stride, d, zero), view(rows + m * stride, d, zero)
            correlation = _centred_dot(a, mean[l], b, mean[m], zero) * inverse[l] * inverse[m]
            total += 2 * abs(correlation - embedding_target)
    return total


@njit(**EXACT)
def _add_group(
    zero, x, stride_n, stride_k, dtype, k, d, embedding_target, limit, order, p, end, direction_sum, centred_sum,
    totals, scratch,
):  # fmt: skip
    """Adds the samples [p, end) of the order to the sums of their class; returns their part of ED's sum.

    Three samples at a time, so that the class's rows are read and written a third as often.
    """
    bytes_ = size_of(zero)
    sample_sum, rows = view(scratch, d, zero), scratch + d * bytes_
    means = view(rows + 3 * k * d * bytes_, 3 * (k + 3), zero)
    inverses = view(rows + 3 * (k * d + k + 3) * bytes_, 3 * (k + 3), zero)
    fill(means, zero)
    fill(inverses, zero)
    first = second = third = x
    embedding_sum, stride = 0.0, stride_k
    while p < end:
        width = 3 if p + 3 <= end else 1
        for t in range(width):
            following = order[p + t + width] if p + t + width < end else order[p + t]
            own, stride = _widen_sample(
                x + order[p + t] * stride_n, stride_k, dtype, k, d, rows + t * k * d * bytes_, zero
            )
            first, second, third = second, third, own
            embedding_sum += _measure_sample(
                zero, own, stride, x + following * stride_n, k, d, embedding_target, limit,
                means[t * (k + 3) : (t + 1) * (k + 3)], inverses[t * (k + 3) : (t + 1) * (k + 3)], totals, sample_sum,
            )  # fmt: skip
        for l in range(k):
            offset = l * d * bytes_
            s, m = view(direction_sum + offset, d, zero), view(centred_sum + offset, d, zero)
            c = view(third + l * stride, d, zero)
            if width == 3:
                a, b = view(first + l * stride, d, zero), view(second + l * stride, d, zero)
                _add_three_to_class(
                    a, b, c, means[l], means[k + 3 + l], means[2 * (k + 3) + l],
                    inverses[l], inverses[k + 3 + l], inverses[2 * (k + 3) + l], s, m,
                )  # fmt: skip
            else:
                _add_to_class(c, means[l], inverses[l], s, m)
        p += width
    return embedding_sum


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
                    shares[t] += _add_group(
                        zero, x, stride_n, stride_k, dtype, k, d, embedding_target, limit, order, p, group_end,
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
def _project(row, mean, feature, factor, sample_sum, scale, along, class_mean, mean_factor, out):
    for j in range(out.shape[0]):
        pull = factor * feature[j] + scale * sample_sum[j]
        out[j] = pull - along * (row[j] - mean) + mean_factor * class_mean[j]


def gradient(
    zero, x, stride_n, stride_k, dtype, targets, stride_targets, n, k, d, num_classes, ignore_index,
    embedding_target, limit, feature, mean_table, up_fd, up_md, up_ed, out, scratch, first, last,
):  # fmt: skip
    """dL/dx of the samples [first, last); `up_ed` is the upstream gradient times 2 / (n k^2)."""
    bytes_ = size_of(zero)
    out_bytes = 2 if dtype <= BFLOAT16 else bytes_
    labels = view(targets, n * stride_targets, 0)
    rounded = scratch + d * bytes_  # a row of the result before it is rounded to half precision
    sample_sum, buffer = view(scratch, d, zero), view(rounded, d, zero)
    widened = scratch + 2 * d * bytes_
    mean, inverse, along = (
        view(widened + k * d * bytes_, k + 3, zero),
        view(widened + (k * d + k + 3) * bytes_, k + 3, zero),
        view(widened + (k * d + 2 * k + 6) * bytes_, k, zero),
    )
    fill(mean, zero)
    fill(inverse, zero)
    factor, mean_factor = cast(up_fd, zero), cast(up_md, zero)
    scale = cast(up_ed if k > 1 else 0 * up_ed, zero)  # one vector has no pair
    for i in range(first, last):
        a = labels[i * stride_targets]
        if not takes_part(a, num_classes, ignore_index):
            fill(buffer, zero * scale)
            for l in range(k):
                store(buffer, out + (i * k + l) * d * out_bytes, dtype)
            continue
        rows, stride = _widen_sample(x + i * stride_n, stride_k, dtype, k, d, widened, zero)
        for l in range(k):
            prefetch(x + min(i + 1, last - 1) * stride_n + l * stride_k, d * out_bytes)
            row, g = view(rows + l * stride, d, zero), view(feature + (a * k + l) * d * bytes_, d, zero)
            mean[l] = _sum(row, zero) / cast(d, zero)
            squared_length, along[l] = _squared_length_and_dot(row, mean[l], g, zero)
            squared_length_of_x = squared_length + cast(d, zero) * mean[l] * mean[l]
            inverse[l] = _inverse_length(squared_length, squared_length_of_x, limit, zero)
        if embedding_target == -1.0:
            _sum_of_directions(rows, stride, k, d, mean, inverse, sample_sum, zero)
        for l in range(k):
            row = view(rows + l * stride, d, zero)
            if embedding_target != -1.0:
                fill(sample_sum, zero)
                for m in range(k):
                    if m != l:
                        other = view(rows + m * stride, d, zero)
                        gram = _centred_dot(row, mean[l], other, mean[m], zero)
                        sign = cast(np.sign(gram * inverse[l] * inverse[m] - embedding_target), zero)
                        _add_centred(other, mean[m], sign * inverse[m], sample_sum)
            dot = factor * along[l] + scale * _centred_dot(row, mean[l], sample_sum, zero, zero)
            table = (a * k + l) * d * bytes_
            address = out + (i * k + l) * d * out_bytes
            result = view(rounded if dtype <= BFLOAT16 else address, d, zero)
            _project(
                row, mean[l], view(feature + table, d, zero), factor * inverse[l], sample_sum, scale * inverse[l],
                dot * inverse[l] * inverse[l] * inverse[l], view(mean_table + table, d, zero), mean_factor, result,
            )  # fmt: skip
            if dtype <= BFLOAT16:
                store(result, address, dtype)
