"""The middle step: class statistics to the three terms and the gradient tables, in float64. See kernels/README.md."""

from __future__ import annotations

import numpy as np
from numba import njit

from adcorre_kernels.cpu.memory import EXACT, SUMS, add_scaled, cast, dot, fill, size_of, view, widest_vectors

COUNT, RECORD, NAIVE = 1, 2, 4
EPSILON = 1e-6
WITHIN, LINEAR, PAIRS = range(3)  # FD's pairs between classes: none, target -1, another target


@njit(**SUMS)
def _feature_row(row, own, w, total, weighted_total, factor, out):
    widest_vectors()
    for j in range(row.shape[0]):
        out[j] = factor * (own * row[j] - w * total[j] - weighted_total[j])


@njit(**SUMS)
def _mean_row(row, inverse, h, along, out):
    """(h - m (m . h)) / |M|, m = M / |M|."""
    widest_vectors()
    for j in range(row.shape[0]):
        out[j] = (h[j] - row[j] * inverse * along) * inverse


@njit(**EXACT)
def _sign(value):
    return value / abs(value) if value != 0 else 0.0  # NaN stays NaN


@njit(**EXACT)
def _attention_step(counts, position, window, own, count, record, w):
    """w of Eq. 7 from an attention map's counts (window, 2, C) and position (1,), and this step's `own` (2, C).

    `count`: this step's are in w, in place of those at `position`. `record`: they enter the map.
    """
    num_classes = w.shape[0]
    size = 2 * num_classes
    place, steps, new = view(position, 1, 0), view(counts, window * size, 0), view(own, size, 0)
    for a in range(num_classes):
        correct, seen = (new[a], new[num_classes + a]) if count else (0, 0)
        for step in range(window):
            if not (count and step == place[0]):
                correct += steps[step * size + a]
                seen += steps[step * size + num_classes + a]
        w[a] = 1 - correct / max(seen, 1) + EPSILON
    if record:
        for a in range(size):
            steps[place[0] * size + a] = new[a]
        place[0] = (place[0] + 1) % window


def terms(
    zero, flat, attention, counts, position, window, own, ce, flags, num_classes, k, d, between, between_target,
    mean_target, embedding_target, eps, lambd, fd_weight, md_weight, ed_weight, factor, values, feature, mean, scales,
    scratch,
):  # fmt: skip
    """Terms, tables and Eq. 12 from the sums of a batch.

    w is `attention`'s, or, if that is 0, of the attention map at `counts`. flags: as in `_attention_step`, COUNT and
    RECORD; NAIVE: w is 1/2. `own` (2, C) and `ce` (2,) are the sums over the logits; 0 if there are none.

    `values`, float64: loss, FD, MD, ED, naive FD, cross-entropy; w (C,); with `own` that (2, C) and `ce`. The tables'
    rows of classes that have samples; rows of absent classes are not written. `scales` (5,) float64: 2 / (n k^2), and
    what the upstream gradient of the loss is multiplied by for FD, MD, ED and the sum of cross-entropies. With a NaN
    count all is NaN, absent classes' rows too. `scratch`: 3 k d + C k float64.
    """
    out, w, scale = view(values, 6, 0.0), view(values + 48, num_classes, 0.0), view(scales, 5, 0.0)
    if flags & NAIVE:
        fill(w, 0.5)
    elif attention:
        given = view(attention, num_classes, 0.0)
        for a in range(num_classes):
            w[a] = given[a]
    if not attention:
        naive = view(scratch, num_classes, 0.0) if flags & NAIVE else w  # the map's w is not used then
        _attention_step(counts, position, window, own, flags & COUNT != 0, flags & RECORD != 0, naive)
    _terms_and_tables(
        zero, flat, w, num_classes, k, d, between, between_target, mean_target, embedding_target, eps, out, feature,
        mean, scale, scratch,
    )  # fmt: skip
    scale[1], scale[2], scale[3], scale[4] = factor, factor, factor, factor
    if ce:
        sums = view(ce, 2, 0.0)
        divisor = sums[1] if sums[1] != 0 else 1.0
        out[5] = sums[0] / divisor
        out[0] = out[5]
        scale[4] = factor / divisor
        for term, weight in ((1, fd_weight), (2, md_weight), (3, ed_weight)):
            if weight != 0:  # a term with weight 0 may be NaN
                out[0] += lambd * weight * out[term]
            scale[term] = lambd * weight * factor
        if own:
            rest, new = view(values + 48 + 8 * num_classes, 2 * num_classes + 2, 0.0), view(own, 2 * num_classes, 0)
            for a in range(2 * num_classes):
                rest[a] = new[a]
            rest[2 * num_classes], rest[2 * num_classes + 1] = sums[0], sums[1]


@njit(**EXACT)
def _terms_and_tables(
    zero, flat, w, num_classes, k, d, between, between_target, mean_target, embedding_target, eps, values, feature,
    mean, scale, scratch,
):  # fmt: skip
    table, bytes_ = num_classes * k * d, size_of(zero)
    rest = flat + (2 * table + num_classes * k) * bytes_
    square_sum = view(rest, num_classes, zero)
    count = view(rest + num_classes * bytes_, num_classes, zero)
    n = 0.0
    for a in range(num_classes):
        n += count[a]
    if np.isnan(n):
        fill(values, np.nan)
        fill(view(feature, table, zero), np.nan)
        fill(view(mean, table, zero), np.nan)
        scale[0] = np.nan
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
    values[1], values[2], values[3], values[4] = fd, md, ed / (n_or_1 * k**2) if k > 1 else 0.0, nfd
    scale[0] = 2 / (n_or_1 * k**2)


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
            squared_length, samples = dot(row, row), np.float64(count[a])
            if between == LINEAR:
                own = k * (n - 1) * samples - 2 * squared_length + square_sum[a]
                add_scaled(row, 1.0, total)
                add_scaled(row, w[a], weighted_total)
            else:
                own = k * samples**2 - squared_length - (k * samples - square_sum[a])
            fd += 2 * w[a] * own
            nfd += own
    if between == LINEAR:
        fd += 2 * dot(total, weighted_total)
        nfd += dot(total, total)
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
    """Class a with every other class: its row of G for embedding l, and its pairs' contribution to FD and naive FD."""
    bytes_ = size_of(zero)
    row = view(flat + (a * k + l) * d * bytes_, d, zero)
    fd, nfd = 0.0, 0.0
    fill(pull, 0.0)
    add_scaled(row, -4 * w[a], pull)
    for b in range(count.shape[0]):
        if b != a and count[b] > 0:
            other = view(flat + (b * k + l) * d * bytes_, d, zero)
            difference = dot(row, other) - target * np.float64(count[a]) * np.float64(count[b])
            fd += (w[a] + w[b]) * abs(difference)
            nfd += abs(difference)
            add_scaled(other, 2 * (w[a] + w[b]) * _sign(difference), pull)
    out = view(feature + (a * k + l) * d * bytes_, d, zero)
    for j in range(d):
        out[j] = pull[j] / divisor
    return fd, nfd


@njit(**EXACT)
def _mean_discriminator(zero, flat, count, k, d, target, eps, mean, scratch):
    """MD (Eq. 10) and H's rows. M replaces the class means: the direction of a mean needs no count."""
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
            squared_length = dot(row, row)
            constant = np.sqrt(squared_length) <= 32 * eps * norm_sum[a * k + l]
            inverse[a * k + l] = 0.0 if constant else 1 / np.sqrt(squared_length) + 0 * squared_length
            own += squared_length * inverse[a * k + l] ** 2
            add_scaled(row, inverse[a * k + l] * (2 / divisor), view(scratch + 8 * (2 * k + l) * d, d, 0.0))
    md = 0 * own
    if target == -1.0 and num_classes > 1:
        md = k * present * (present - 1.0) + dot(h, h) * (divisor / 2) ** 2 - own
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
                        difference = dot(row, other) * factor * inverse[b * k + l] - target
                        md += abs(difference)
                        add_scaled(other, 2 / divisor * _sign(difference) * inverse[b * k + l], pull)
            if num_classes == 1:
                fill(out, zero * cast(own, zero))
            else:
                _mean_row(row, factor, pull, dot(row, pull) * factor, out)
    return md / divisor
