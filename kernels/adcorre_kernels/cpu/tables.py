"""The middle step: class statistics to the three terms and the gradient tables, in float64. See kernels/README.md."""

from __future__ import annotations

import numpy as np
from numba import njit

from adcorre_kernels.cpu.memory import EXACT, SUMS, cast, fill, size_of, view

WITHIN, LINEAR, PAIRS = range(3)  # FD's pairs of two classes: none, at target -1, at another target


@njit(**SUMS)
def _dot(a, b):
    total = 0.0
    for j in range(a.shape[0]):
        total += np.float64(a[j]) * np.float64(b[j])
    return total


@njit(**SUMS)
def _add(row, factor, total):
    for j in range(row.shape[0]):
        total[j] += factor * row[j]


@njit(**SUMS)
def _feature_row(row, own, w, total, weighted_total, factor, out):
    for j in range(row.shape[0]):
        out[j] = factor * (own * row[j] - w * total[j] - weighted_total[j])


@njit(**SUMS)
def _mean_row(row, inverse, h, along, out):
    """(h - m (m . h)) / |M|, m = M / |M|."""
    for j in range(row.shape[0]):
        out[j] = (h[j] - row[j] * inverse * along) * inverse


@njit(**EXACT)
def _sign(value):
    return value / abs(value) if value != 0 else 0.0  # NaN stays NaN


def terms(
    zero, flat, attention, num_classes, k, d, between, between_target, mean_target, embedding_target, eps,
    values, feature, mean, embedding_scale, scratch,
):  # fmt: skip
    """`values` (4,) = FD, MD, ED, naive FD; the tables' rows of classes that have samples; 2 / (n k^2).

    Rows of absent classes are not written. With a NaN count all is NaN, these rows too. `scratch`: 3 k d + C k float64.
    """
    table, bytes_ = num_classes * k * d, size_of(zero)
    rest = flat + (2 * table + num_classes * k) * bytes_
    square_sum = view(rest, num_classes, zero)
    count = view(rest + num_classes * bytes_, num_classes, zero)
    w = view(attention, num_classes, 0.0)
    out = view(values, 4, zero)
    n = 0.0
    for a in range(num_classes):
        n += count[a]
    if np.isnan(n):
        fill(out, np.nan)
        fill(view(feature, table, zero), np.nan)
        fill(view(mean, table, zero), np.nan)
        view(embedding_scale, 1, zero)[0] = np.nan
        return
    n_or_1 = max(n, 1.0)
    fd, nfd = _feature_discriminator(
        zero, flat, w, count, square_sum, k, d, n, n_or_1, between, between_target, feature, scratch
    )
    md = _mean_discriminator(zero, flat, count, k, d, mean_target, eps, mean, scratch)
    ed = np.float64(view(rest + 2 * num_classes * bytes_, 1, zero)[0])
    if embedding_target == -1.0:
        ed += n * (k * (k - 1))
        for a in range(num_classes):
            ed -= square_sum[a]
    out[0], out[1], out[2], out[3] = fd, md, ed / (n_or_1 * k**2) if k > 1 else 0.0, nfd
    view(embedding_scale, 1, zero)[0] = 2 / (n_or_1 * k**2)


@njit(**EXACT)
def _feature_discriminator(
    zero, flat, w, count, square_sum, k, d, n, n_or_1, between, between_target, feature, scratch
):  # fmt: skip
    """FD (Eq. 9), the naive FD (Eq. 5: w = 1/2) and G's rows."""
    size, bytes_ = k * d, size_of(zero)
    divisor = k * n_or_1**2
    total, weighted_total = view(scratch, size, 0.0), view(scratch + 8 * size, size, 0.0)
    fill(total, 0.0)
    fill(weighted_total, 0.0)
    pull = view(scratch, d, 0.0)
    fd, nfd = 0.0, 0.0
    for a in range(count.shape[0]):
        if count[a] > 0:
            row = view(flat + a * size * bytes_, size, zero)
            squared_length, samples = _dot(row, row), np.float64(count[a])
            if between == LINEAR:
                own = k * (n - 1) * samples - 2 * squared_length + square_sum[a]
                _add(row, 1.0, total)
                _add(row, w[a], weighted_total)
            else:
                own = k * samples**2 - squared_length - (k * samples - square_sum[a])
            fd += 2 * w[a] * own
            nfd += own
    if between == LINEAR:
        fd += 2 * _dot(total, weighted_total)
        nfd += _dot(total, total)
    for a in range(count.shape[0]):
        if count[a] > 0:
            if between == PAIRS:
                for l in range(k):
                    weighted, plain = _class_pairs(
                        zero, flat, w, count, k, d, a, l, between_target, divisor, feature, pull
                    )
                    fd += weighted
                    nfd += plain
            else:
                row = view(flat + a * size * bytes_, size, zero)
                out = view(feature + a * size * bytes_, size, zero)
                own = (4 if between == LINEAR else 2) * w[a]
                _feature_row(row, own, w[a], total, weighted_total, -2 / divisor, out)
    return fd / divisor, nfd / divisor


@njit(**EXACT)
def _class_pairs(zero, flat, w, count, k, d, a, l, target, divisor, feature, pull):
    """Class a with every other class: its row of G for embedding l, and its pairs' part of FD and of the naive FD."""
    bytes_ = size_of(zero)
    row = view(flat + (a * k + l) * d * bytes_, d, zero)
    fd, nfd = 0.0, 0.0
    fill(pull, 0.0)
    _add(row, -4 * w[a], pull)
    for b in range(count.shape[0]):
        if b != a and count[b] > 0:
            other = view(flat + (b * k + l) * d * bytes_, d, zero)
            difference = _dot(row, other) - target * np.float64(count[a]) * np.float64(count[b])
            fd += (w[a] + w[b]) * abs(difference)
            nfd += abs(difference)
            _add(other, 2 * (w[a] + w[b]) * _sign(difference), pull)
    out = view(feature + (a * k + l) * d * bytes_, d, zero)
    for j in range(d):
        out[j] = pull[j] / divisor
    return fd, nfd


@njit(**EXACT)
def _mean_discriminator(zero, flat, count, k, d, target, eps, mean, scratch):
    """MD (Eq. 10) and H's rows. M stands for the class means: the direction of a mean needs no count."""
    num_classes, bytes_ = count.shape[0], size_of(zero)
    table = num_classes * k * d
    centred_sum, norm_sum = flat + table * bytes_, view(flat + 2 * table * bytes_, num_classes * k, zero)
    divisor = k * num_classes**2
    h, inverse = view(scratch + 16 * k * d, k * d, 0.0), view(scratch + 24 * k * d, num_classes * k, 0.0)
    fill(h, 0.0)
    present, own = 0, 0.0
    for a in range(num_classes):
        present += count[a] > 0
        for l in range(k if count[a] > 0 else 0):
            row = view(centred_sum + (a * k + l) * d * bytes_, d, zero)
            squared_length = _dot(row, row)
            constant = np.sqrt(squared_length) <= 32 * eps * norm_sum[a * k + l]
            inverse[a * k + l] = 0.0 if constant else 1 / np.sqrt(squared_length) + 0 * squared_length
            own += squared_length * inverse[a * k + l] ** 2
            _add(row, inverse[a * k + l] * (2 / divisor), view(scratch + 8 * (2 * k + l) * d, d, 0.0))
    md = 0 * own
    if target == -1.0 and num_classes > 1:
        md = k * present * (present - 1.0) + _dot(h, h) * (divisor / 2) ** 2 - own
    for a in range(num_classes):
        for l in range(k if count[a] > 0 else 0):
            row = view(centred_sum + (a * k + l) * d * bytes_, d, zero)
            out = view(mean + (a * k + l) * d * bytes_, d, zero)
            pull, factor = view(scratch + 8 * (2 * k + l) * d, d, 0.0), inverse[a * k + l]
            if target != -1.0:
                fill(pull, 0.0)
                for b in range(num_classes):
                    if b != a and count[b] > 0:
                        other = view(centred_sum + (b * k + l) * d * bytes_, d, zero)
                        difference = _dot(row, other) * factor * inverse[b * k + l] - target
                        md += abs(difference)
                        _add(other, 2 / divisor * _sign(difference) * inverse[b * k + l], pull)
            if num_classes == 1:
                fill(out, zero * cast(own, zero))
            else:
                _mean_row(row, factor, pull, _dot(row, pull) * factor, out)
    return md / divisor
