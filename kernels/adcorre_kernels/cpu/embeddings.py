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
    widest_vectors,
)

PADDING = 7  # zeros behind a sample's means and inverse lengths: rows are added up to eight at a time
GROUP = 63  # samples: float32 sums of so many enter float64
ORDER, SUM, FINISH, ALL = range(4)  # what a call of `statistics` does


@njit(**SUMS)
def _sum(row, zero):
    widest_vectors()
    total = zero
    for j in range(row.shape[0]):
        total += row[j]
    return total


@njit(**SUMS)
def _dot(a, b, zero):
    widest_vectors()
    total = zero
    for j in range(a.shape[0]):
        total += a[j] * b[j]
    return total


@njit(**SUMS)
def _squared_length(row, mean, zero):
    widest_vectors()
    total = zero
    for j in range(row.shape[0]):
        value = row[j] - mean
        total += value * value
    return total


@njit(**SUMS)
def _dot_with_pull(row, mean, feature, factor, sample_sum, scale, zero):
    """Of x - mean with what FD and ED pull at."""
    widest_vectors()
    total = zero
    for j in range(row.shape[0]):
        total += (row[j] - mean) * (factor * feature[j] + scale * sample_sum[j])
    return total


@njit(**SUMS)
def _centred_dot(a, mean_a, b, mean_b, zero):
    widest_vectors()
    total = zero
    for j in range(a.shape[0]):
        total += (a[j] - mean_a) * (b[j] - mean_b)
    return total


@njit(**SUMS)
def _add(row, factor, total):
    widest_vectors()
    for j in range(row.shape[0]):
        total[j] += factor * row[j]


@njit(**SUMS)
def _add_centred(row, mean, factor, total):
    widest_vectors()
    for j in range(row.shape[0]):
        total[j] += factor * (row[j] - mean)


@njit(**SUMS)
def _add_four_centred(a, b, c, d, mean_a, mean_b, mean_c, mean_d, by_a, by_b, by_c, by_d, total):
    widest_vectors()
    for j in range(total.shape[0]):
        total[j] += (by_a * (a[j] - mean_a) + by_b * (b[j] - mean_b)) + (by_c * (c[j] - mean_c) + by_d * (d[j] - mean_d))


@njit(**SUMS)
def _add_eight_centred(
    a, b, c, d, e, f, g, h, mean_a, mean_b, mean_c, mean_d, mean_e, mean_f, mean_g, mean_h,
    by_a, by_b, by_c, by_d, by_e, by_f, by_g, by_h, total,
):  # fmt: skip
    widest_vectors()
    for j in range(total.shape[0]):
        total[j] += (
            (by_a * (a[j] - mean_a) + by_b * (b[j] - mean_b)) + (by_c * (c[j] - mean_c) + by_d * (d[j] - mean_d))
        ) + ((by_e * (e[j] - mean_e) + by_f * (f[j] - mean_f)) + (by_g * (g[j] - mean_g) + by_h * (h[j] - mean_h)))


@njit(**SUMS)
def _add_to_class(row, mean, inverse, direction_sum, centred_sum):
    widest_vectors()
    for j in range(row.shape[0]):
        value = row[j] - mean
        direction_sum[j] += value * inverse
        centred_sum[j] += value


@njit(**SUMS)
def _add_three_to_class(a, b, c, mean_a, mean_b, mean_c, inverse_a, inverse_b, inverse_c, direction_sum, centred_sum):
    widest_vectors()
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
def _measure(rows, stride, following, k, d, limit, mean, inverse, squared_length_of_x, zero):
    """Means, inverse lengths and squared lengths of k rows. The k rows at `following` are fetched meanwhile.

    Loops over the rows, each with one pass: their chains of operations run side by side.
    """
    for l in range(k):
        prefetch(following + l * stride, d * size_of(zero))
        mean[l] = _sum(view(rows + l * stride, d, zero), zero) / cast(d, zero)
    for l in range(k):
        inverse[l] = _squared_length(view(rows + l * stride, d, zero), mean[l], zero)
    for l in range(k):
        squared_length_of_x[l] = inverse[l] + cast(d, zero) * mean[l] * mean[l]
        inverse[l] = _inverse_length(inverse[l], squared_length_of_x[l], limit, zero)


@njit(**EXACT)
def _sum_of_directions(rows, stride, k, d, mean, inverse, total, zero):
    """u, eight or four rows at a time; `mean` and `inverse` have PADDING zeros behind the k numbers."""
    fill(total, zero)
    l = 0
    while l < k:
        a, b, c, e = (
            view(rows + l * stride, d, zero),
            view(rows + min(l + 1, k - 1) * stride, d, zero),
            view(rows + min(l + 2, k - 1) * stride, d, zero),
            view(rows + min(l + 3, k - 1) * stride, d, zero),
        )
        if k - l <= 4:
            _add_four_centred(
                a, b, c, e, mean[l], mean[l + 1], mean[l + 2], mean[l + 3],
                inverse[l], inverse[l + 1], inverse[l + 2], inverse[l + 3], total,
            )  # fmt: skip
            l += 4
        else:
            f, g, h, i = (
                view(rows + (l + 4) * stride, d, zero),
                view(rows + min(l + 5, k - 1) * stride, d, zero),
                view(rows + min(l + 6, k - 1) * stride, d, zero),
                view(rows + min(l + 7, k - 1) * stride, d, zero),
            )
            _add_eight_centred(
                a, b, c, e, f, g, h, i, mean[l], mean[l + 1], mean[l + 2], mean[l + 3], mean[l + 4], mean[l + 5],
                mean[l + 6], mean[l + 7], inverse[l], inverse[l + 1], inverse[l + 2], inverse[l + 3], inverse[l + 4],
                inverse[l + 5], inverse[l + 6], inverse[l + 7], total,
            )  # fmt: skip
            l += 8


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
def _embedding_sum(rows, stride, k, d, embedding_target, mean, inverse, sample_sum, zero):
    """A sample's part of ED's sum."""
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
    bytes_, padded = size_of(zero), k + PADDING
    sample_sum, rows = view(scratch, d, zero), scratch + d * bytes_
    means = view(rows + 3 * k * d * bytes_, 3 * padded, zero)
    inverses = view(rows + 3 * (k * d + padded) * bytes_, 3 * padded, zero)
    squared_length_of_x = view(rows + 3 * (k * d + 2 * padded) * bytes_, k, zero)
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
            mean, inverse = means[t * padded : (t + 1) * padded], inverses[t * padded : (t + 1) * padded]
            _measure(own, stride, x + following * stride_n, k, d, limit, mean, inverse, squared_length_of_x, zero)
            for l in range(k):
                totals[2 * k * d + l] += np.sqrt(squared_length_of_x[l])
                totals[2 * k * d + k] += inverse[l] != 0
            embedding_sum += _embedding_sum(own, stride, k, d, embedding_target, mean, inverse, sample_sum, zero)
        for l in range(k):
            offset = l * d * bytes_
            s, m = view(direction_sum + offset, d, zero), view(centred_sum + offset, d, zero)
            c = view(third + l * stride, d, zero)
            if width == 3:
                a, b = view(first + l * stride, d, zero), view(second + l * stride, d, zero)
                _add_three_to_class(
                    a, b, c, means[l], means[padded + l], means[2 * padded + l],
                    inverses[l], inverses[padded + l], inverses[2 * padded + l], s, m,
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
    widest_vectors()
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
    widened, padded = scratch + 2 * d * bytes_, k + PADDING
    mean = view(widened + k * d * bytes_, padded, zero)
    inverse = view(widened + (k * d + padded) * bytes_, padded, zero)
    squared_length_of_x = view(widened + (k * d + 2 * padded) * bytes_, k, zero)
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
        following = x + min(i + 1, last - 1) * stride_n
        _measure(rows, stride, following, k, d, limit, mean, inverse, squared_length_of_x, zero)
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
            table = (a * k + l) * d * bytes_
            g = view(feature + table, d, zero)
            dot = _dot_with_pull(row, mean[l], g, factor, sample_sum, scale, zero)
            address = out + (i * k + l) * d * out_bytes
            result = view(rounded if dtype <= BFLOAT16 else address, d, zero)
            _project(
                row, mean[l], g, factor * inverse[l], sample_sum, scale * inverse[l],
                dot * inverse[l] * inverse[l] * inverse[l], view(mean_table + table, d, zero), mean_factor, result,
            )  # fmt: skip
            if dtype <= BFLOAT16:
                store(result, address, dtype)
