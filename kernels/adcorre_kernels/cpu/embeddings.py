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
    add_scaled,
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

PADDING = 3  # zeros after a sample's means and inverse lengths, since rows are added four or eight at a time
GROUP = 63  # float32 sums of this many samples are added in float64
ORDER, SUM, FINISH, ALL = range(4)  # what a call of `statistics` does


@njit(**SUMS)
def _sum(row, d, zero):
    widest_vectors()
    x, total = view(row, d, zero), zero
    for j in range(d):
        total += x[j]
    return total


@njit(**SUMS)
def _squared_length(row, mean, d, zero):
    widest_vectors()
    x, total = view(row, d, zero), zero
    for j in range(d):
        value = x[j] - mean
        total += value * value
    return total


@njit(**SUMS)
def _dot(a, mean_a, b, mean_b, d, zero):
    widest_vectors()
    x, y, total = view(a, d, zero), view(b, d, zero), zero
    for j in range(d):
        total += (x[j] - mean_a) * (y[j] - mean_b)
    return total


@njit(**SUMS)
def _dot_with_pull(row, mean, feature, factor, sample_sum, scale, d, zero):
    """The dot product of x - mean with the pull of FD and ED."""
    widest_vectors()
    x, g, u, total = view(row, d, zero), view(feature, d, zero), view(sample_sum, d, zero), zero
    for j in range(d):
        total += (x[j] - mean) * (factor * g[j] + scale * u[j])
    return total


@njit(**SUMS)
def _project(row, mean, feature, factor, sample_sum, scale, along, class_mean, mean_factor, out, d, zero):
    widest_vectors()
    x, g, u, h, y = (
        view(row, d, zero), view(feature, d, zero), view(sample_sum, d, zero), view(class_mean, d, zero),
        view(out, d, zero),
    )  # fmt: skip
    for j in range(d):
        pull = factor * g[j] + scale * u[j]
        y[j] = pull - along * (x[j] - mean) + mean_factor * h[j]


@njit(**SUMS)
def _add_centred(row, mean, factor, total, d, zero):
    widest_vectors()
    x, y = view(row, d, zero), view(total, d, zero)
    for j in range(d):
        y[j] += factor * (x[j] - mean)


@njit(**EXACT)
def _four_rows(rows, stride, last, d, zero):
    """Rows 0 to 3; row `last` replaces rows beyond it."""
    return (
        view(rows, d, zero), view(rows + min(1, last) * stride, d, zero), view(rows + min(2, last) * stride, d, zero),
        view(rows + min(3, last) * stride, d, zero),
    )  # fmt: skip


@njit(**EXACT)
def _four_numbers(address, zero):
    numbers = view(address, 4, zero)
    return numbers[0], numbers[1], numbers[2], numbers[3]


@njit(**SUMS)
def _add_four_centred(rows, stride, last, mean, inverse, total, d, zero):
    """Add `_four_rows`. `mean` and `inverse` are addresses."""
    widest_vectors()
    (a, b, c, e), y = _four_rows(rows, stride, last, d, zero), view(total, d, zero)
    m0, m1, m2, m3 = _four_numbers(mean, zero)
    s0, s1, s2, s3 = _four_numbers(inverse, zero)
    for j in range(d):
        y[j] += (s0 * (a[j] - m0) + s1 * (b[j] - m1)) + (s2 * (c[j] - m2) + s3 * (e[j] - m3))


@njit(**SUMS)
def _add_eight_centred(rows, stride, last, mean, inverse, total, d, zero):
    """The same for eight rows, of which there are at least five."""
    widest_vectors()
    (a, b, c, e), y = _four_rows(rows, stride, last, d, zero), view(total, d, zero)
    f, g, h, i = _four_rows(rows + 4 * stride, stride, last - 4, d, zero)
    m0, m1, m2, m3 = _four_numbers(mean, zero)
    m4, m5, m6, m7 = _four_numbers(mean + 4 * size_of(zero), zero)
    s0, s1, s2, s3 = _four_numbers(inverse, zero)
    s4, s5, s6, s7 = _four_numbers(inverse + 4 * size_of(zero), zero)
    for j in range(d):
        y[j] += ((s0 * (a[j] - m0) + s1 * (b[j] - m1)) + (s2 * (c[j] - m2) + s3 * (e[j] - m3))) + (
            (s4 * (f[j] - m4) + s5 * (g[j] - m5)) + (s6 * (h[j] - m6) + s7 * (i[j] - m7))
        )


@njit(**SUMS)
def _add_to_class(row, mean, inverse, direction_sum, centred_sum, d, zero):
    widest_vectors()
    x, s, m = view(row, d, zero), view(direction_sum, d, zero), view(centred_sum, d, zero)
    for j in range(d):
        value = x[j] - mean
        s[j] += value * inverse
        m[j] += value


@njit(**SUMS)
def _add_three_to_class(
    row_a, row_b, row_c, mean_a, mean_b, mean_c, inverse_a, inverse_b, inverse_c, direction_sum, centred_sum, d, zero
):
    widest_vectors()
    a, b, c, s, m = (
        view(row_a, d, zero), view(row_b, d, zero), view(row_c, d, zero), view(direction_sum, d, zero),
        view(centred_sum, d, zero),
    )  # fmt: skip
    for j in range(d):
        x, y, z = a[j] - mean_a, b[j] - mean_b, c[j] - mean_c
        s[j] += x * inverse_a + y * inverse_b + z * inverse_c
        m[j] += x + y + z


@njit(**EXACT)
def _inverse_length(squared_length, squared_length_of_x, limit, zero):
    """1 / |x - mean|; 0 for a constant vector. NaN on overflow: zero would hide it."""
    constant = squared_length <= squared_length_of_x * limit  # on overflow too
    return (zero if constant else cast(1, zero) / np.sqrt(squared_length)) + zero * squared_length


@njit(**EXACT)
def _widen_sample(x, stride_k, dtype, k, d, rows, zero):
    """Address and stride of a sample's k rows in `zero`'s type; half precision is widened into `rows`."""
    if dtype > BFLOAT16:
        return x, stride_k
    stride = d * size_of(zero)
    for l in range(k):
        widen(view(x + l * stride_k, d, np.uint16(0)), dtype, view(rows + l * stride, d, zero))
    return rows, stride


@njit(**EXACT)
def _measure(rows, stride, following, k, d, limit, mean, inverse, squared_length_of_x, zero):
    """Means, inverse lengths and squared lengths of k rows. Prefetches the k rows at `following`.

    Each loop makes one pass over every row, so that the CPU overlaps the rows.
    """
    for l in range(k):
        prefetch(following + l * stride, d * size_of(zero))
        mean[l] = _sum(rows + l * stride, d, zero) / cast(d, zero)
    for l in range(k):
        inverse[l] = _squared_length(rows + l * stride, mean[l], d, zero)
    for l in range(k):
        squared_length_of_x[l] = inverse[l] + cast(d, zero) * mean[l] * mean[l]
        inverse[l] = _inverse_length(inverse[l], squared_length_of_x[l], limit, zero)


@njit(**EXACT)
def _sum_of_directions(rows, stride, k, d, mean, inverse, total, zero):
    """u, eight or four rows at a time. PADDING zeros follow the k numbers at the addresses `mean` and `inverse`."""
    fill(view(total, d, zero), zero)
    bytes_, l = size_of(zero), 0
    while l < k:
        if k - l <= 4:
            _add_four_centred(
                rows + l * stride, stride, k - 1 - l, mean + l * bytes_, inverse + l * bytes_, total, d, zero
            )
            l += 4
        else:
            _add_eight_centred(
                rows + l * stride, stride, k - 1 - l, mean + l * bytes_, inverse + l * bytes_, total, d, zero
            )
            l += 8


@njit(**EXACT)
def _order(targets, stride, n, num_classes, ignore_index, begin, order, count):
    """Sort the samples by class, except ignored ones: class a is at order[begin[a]:begin[a + 1]], in x's order."""
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
    """A sample's contribution to ED's sum."""
    if embedding_target == -1.0:
        _sum_of_directions(rows, stride, k, d, mean, inverse, sample_sum, zero)
        return np.float64(_dot(sample_sum, zero, sample_sum, zero, d, zero))
    means, inverses, total = view(mean, k, zero), view(inverse, k, zero), 0.0
    for l in range(k):
        for m in range(l):
            gram = _dot(rows + l * stride, means[l], rows + m * stride, means[m], d, zero)
            total += 2 * abs(gram * inverses[l] * inverses[m] - embedding_target)
    return total


@njit(**EXACT)
def _add_group(
    zero, x, stride_n, stride_k, dtype, k, d, embedding_target, limit, order, p, end, direction_sum, centred_sum,
    totals, scratch,
):  # fmt: skip
    """Adds the samples [p, end) of the order to the sums of their class; returns their contribution to ED.

    Three samples at a time, so that the class's rows are read and written only a third as often.
    """
    bytes_, padded = size_of(zero), k + PADDING
    sample_sum, rows = scratch, scratch + d * bytes_
    mean_address = rows + 3 * k * d * bytes_
    inverse_address = mean_address + 3 * padded * bytes_
    means, inverses = view(mean_address, 3 * padded, zero), view(inverse_address, 3 * padded, zero)
    squared_length_of_x = view(inverse_address + 3 * padded * bytes_, k, zero)
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
            offset = t * padded * bytes_
            mean, inverse = view(mean_address + offset, k, zero), view(inverse_address + offset, k, zero)
            _measure(own, stride, x + following * stride_n, k, d, limit, mean, inverse, squared_length_of_x, zero)
            for l in range(k):
                totals[2 * k * d + l] += np.sqrt(squared_length_of_x[l])
                totals[2 * k * d + k] += inverse[l] != 0
            embedding_sum += _embedding_sum(
                own, stride, k, d, embedding_target, mean_address + offset, inverse_address + offset, sample_sum, zero
            )
        for l in range(k):
            offset, c = l * d * bytes_, third + l * stride
            if width == 3:
                _add_three_to_class(
                    first + l * stride, second + l * stride, c, means[l], means[padded + l], means[2 * padded + l],
                    inverses[l], inverses[padded + l], inverses[2 * padded + l],
                    direction_sum + offset, centred_sum + offset, d, zero,
                )  # fmt: skip
            else:
                _add_to_class(c, means[l], inverses[l], direction_sum + offset, centred_sum + offset, d, zero)
        p += width
    return embedding_sum


@njit(**EXACT)
def _write(zero, totals, flat, a, num_classes, k, d, only_norms):
    """Write one class's sums to `flat`, whose order is S, M, A, the sums of |z|^2, counts, ED's sum."""
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
    """Class sums in shares of `share` samples in class order; SUM computes shares [first, last). `flat` starts as 0.

    The sums of a class within one share are written to `flat`. A class in several shares has a partial sum in one of
    each share's two slots (2 k d + k + 1 numbers, float64), the first if it began in an earlier share; FINISH adds
    the slots. `index` holds begin (C + 1) and order (n); `scratch` belongs to this call.
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
                direct = inside and end - p <= GROUP  # write to `flat` directly
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
                        add_scaled(view(partial, 2 * k * d, zero), 1.0, totals)
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
                    add_scaled(view(slots + 8 * size * (2 * t + (begin[a] >= t * share)), size, 0.0), 1.0, totals)
                    t += 1
                _write(zero, totals, flat, a, num_classes, k, d, False)
        embedding_sum = 0.0
        for t in range(shares.shape[0]):
            embedding_sum += shares[t]
        view(rest + num_classes * bytes_, 1, zero)[0] = embedding_sum


def gradient(
    zero, x, stride_n, stride_k, dtype, targets, stride_targets, n, k, d, num_classes, ignore_index,
    embedding_target, limit, feature, mean_table, up_fd, up_md, up_ed, out, scratch, first, last,
):  # fmt: skip
    """dL/dx of the samples [first, last); `up_ed` is the upstream gradient times 2 / (n k^2)."""
    bytes_ = size_of(zero)
    out_bytes = 2 if dtype <= BFLOAT16 else bytes_
    labels = view(targets, n * stride_targets, 0)
    rounded = scratch + d * bytes_  # a row of the result before it is rounded to half precision
    buffer = view(rounded, d, zero)
    widened, padded = scratch + 2 * d * bytes_, k + PADDING
    mean_address = widened + k * d * bytes_
    inverse_address = mean_address + padded * bytes_
    mean, inverse = view(mean_address, padded, zero), view(inverse_address, padded, zero)
    squared_length_of_x = view(inverse_address + padded * bytes_, k, zero)
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
            _sum_of_directions(rows, stride, k, d, mean_address, inverse_address, scratch, zero)
        for l in range(k):
            row = rows + l * stride
            if embedding_target != -1.0:
                fill(view(scratch, d, zero), zero)
                for m in range(k):
                    if m != l:
                        other = rows + m * stride
                        gram = _dot(row, mean[l], other, mean[m], d, zero)
                        sign = cast(np.sign(gram * inverse[l] * inverse[m] - embedding_target), zero)
                        _add_centred(other, mean[m], sign * inverse[m], scratch, d, zero)
            table = (a * k + l) * d * bytes_
            dot = _dot_with_pull(row, mean[l], feature + table, factor, scratch, scale, d, zero)
            address = out + (i * k + l) * d * out_bytes
            _project(
                row, mean[l], feature + table, factor * inverse[l], scratch, scale * inverse[l],
                dot * inverse[l] * inverse[l] * inverse[l], mean_table + table, mean_factor,
                rounded if dtype <= BFLOAT16 else address, d, zero,
            )  # fmt: skip
            if dtype <= BFLOAT16:
                store(buffer, address, dtype)
