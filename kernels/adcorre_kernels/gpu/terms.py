"""The terms, Eq. 12 and the gradient tables from the class statistics, in one launch, for up to 32 classes.

Programs 0 to k - 1 write the tables of one embedding each. Program k reads all embeddings, BK at a time, and writes the
values. No program waits for another. Sums over d are float32; where large numbers cancel, the arithmetic is float64.
Tiles are (BK embeddings, BC classes, BD entries).
"""

import triton
import triton.language as tl

from adcorre_kernels.gpu.attention import ATTENTION, CE, CE_SUMS
from adcorre_kernels.gpu.rows import sign


@triton.jit
def _tile(base_ptr, l, start, C, K: tl.constexpr, D: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr):
    """Entries [start, start + BD) of embeddings l (BK,) for all classes of a (C, K, D) array: zeros outside."""
    a = tl.arange(0, BC)
    entry = start + tl.arange(0, BD)
    at = (a[None, :] * K + l[:, None]) * D
    inside = (a < C)[None, :] & (l < K)[:, None]
    at = at[:, :, None] + entry[None, None, :]
    return tl.load(base_ptr + at, mask=inside[:, :, None] & (entry < D)[None, None, :], other=0.0)


@triton.jit
def _row(base_ptr, b, l, start, K: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    """The same entries of class b alone: (BK, 1, BD)."""
    entry = start + tl.arange(0, BD)
    at = ((b * K + l) * D)[:, None, None] + entry[None, None, :]
    return tl.load(base_ptr + at, mask=(l < K)[:, None, None] & (entry < D)[None, None, :], other=0.0)


@triton.jit
def _inverse_lengths(
    centred_ptr, norm_ptr, present, l, C, K: tl.constexpr, D: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr
):
    """1 / |M[a, l]| (BK, BC); 0 if the class is absent or its mean is constant up to rounding."""
    a = tl.arange(0, BC)
    inside = (a < C)[None, :] & (l < K)[:, None]
    scale = tl.load(
        norm_ptr + a[None, :] * K + l[:, None], mask=inside, other=0.0
    )  # >= |M|: no square over- or underflows
    to_scale = tl.where(scale > 0, 1.0 / scale, 0.0)
    squared = tl.zeros_like(scale)
    for start in range(0, D, BD):
        m = _tile(centred_ptr, l, start, C, K, D, BC, BD) * to_scale[:, :, None]
        squared += tl.sum(m * m, 2)
    length = tl.sqrt_rn(squared)
    constant = length <= 3.814697265625e-06  # 32 eps
    return tl.where(present[None, :] & (constant == 0), to_scale / length, 0.0)


@triton.jit
def _correlations(base_ptr, scale, l, C, K: tl.constexpr, D: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr):
    """scale[l, a] scale[l, b] row_la . row_lb: (BK, BC, BC)."""
    column = tl.arange(0, BC)[None, None, :]
    products = tl.zeros((l.shape[0], BC, BC), tl.float32)
    for start in range(0, D, BD):
        tile = _tile(base_ptr, l, start, C, K, D, BC, BD)
        for b in range(C):
            product = tl.sum(tile * _row(base_ptr, b, l, start, K, D, BD), 2)
            products += tl.where(column == b, product[:, :, None], 0.0)
    return products * (scale[:, :, None] * scale[:, None, :])


@triton.jit
def _combine(base_ptr, weight, l, start, C, K: tl.constexpr, D: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr):
    """sum over b of weight[l, a, b] row_lb (BK, BC, BD)."""
    column = tl.arange(0, BC)[None, None, :]
    total = tl.zeros((l.shape[0], BC, BD), tl.float32)
    for b in range(C):
        weight_b = tl.sum(tl.where(column == b, weight, 0.0), 2)
        total += weight_b[:, :, None] * _row(base_ptr, b, l, start, K, D, BD)
    return total


@triton.jit(do_not_specialize=["C", "factor"])
def terms_kernel(
    flat_ptr,
    attention_ptr,
    ce_ptr,
    lambd,
    lambd_ptr,
    factor,
    values_ptr,
    loss_ptr,
    tables_ptr,
    flat_offset,
    C,
    K: tl.constexpr,
    D: tl.constexpr,
    BK: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
    BETWEEN: tl.constexpr,
    MEAN: tl.constexpr,
    EMBEDDING: tl.constexpr,
    FD: tl.constexpr,
    MD: tl.constexpr,
    ED: tl.constexpr,
    NAIVE: tl.constexpr,
):
    """flat -> values (fd, md, ed, nfd) and the tables: G and H (C, k, d), then 2 / (n k^2).

    BETWEEN None: FD and G include only the pairs within classes. NAIVE: w is 1/2.

    With `loss_ptr`: Eq. 12 too, and `values` as described in attention.py; w and the sums of cross-entropies are read
    from `values` if their pointers are None. The tables are then those of the loss: multiplied by lambda, by the terms'
    weights FD, MD and ED and by `factor`; after them, `factor` / the divisor of cross-entropy. If `lambd_ptr` is given,
    `lambd` is not used.
    """
    MEAN_OF_CLASSES: tl.constexpr = False if BETWEEN is None else BETWEEN != -1
    a = tl.arange(0, BC)
    size = C * K * D
    flat_ptr += flat_offset
    centred_ptr = flat_ptr + size
    norm_ptr = centred_ptr + size
    square_ptr = norm_ptr + C * K
    HAS_ATTENTION: tl.constexpr = attention_ptr is not None
    if attention_ptr is None:
        attention_ptr = values_ptr + ATTENTION
    if NAIVE:
        w = tl.where(a < C, 0.5, 0.0)
    else:
        w = tl.load(attention_ptr + a, mask=a < C, other=0.0).to(tl.float32)
    count = tl.load(square_ptr + C + a, mask=a < C, other=0.0)
    present = count > 0
    pairs = (present[:, None] & present[None, :] & (a[:, None] != a[None, :]))[None]
    n = tl.sum(count.to(tl.float64), 0)
    at_least_one = tl.where(n < 1, 1.0, n)  # NaN stays NaN
    nan_if_bad = (n * 0).to(tl.float32)  # 0, or NaN if a label is bad
    pair_weight = (w[:, None] + w[None, :])[None]
    half_to_h = tl.where(C == 1, 0.0, 1.0 / (K * C.to(tl.float32) * C.to(tl.float32)))
    to_g = (1.0 / (K * at_least_one * at_least_one)).to(tl.float32)
    to_h = 2 * half_to_h
    if loss_ptr is not None:
        if ce_ptr is None:
            ce_ptr = values_ptr + ATTENTION + CE_SUMS * C
        wide_lambd = tl.cast(lambd, tl.float64)
        if lambd_ptr is not None:
            wide_lambd = tl.load(lambd_ptr).to(tl.float64)
        to_loss = wide_lambd.to(tl.float32) * factor
        to_g *= to_loss * FD
        to_h *= to_loss * MD
    mean_ptr = tables_ptr + C.to(tl.int64) * (K * D)
    scale_ptr = mean_ptr + C.to(tl.int64) * (K * D)

    if tl.program_id(0) < K:
        l = tl.program_id(0) + tl.arange(0, 1)
        if MEAN_OF_CLASSES:
            products = _correlations(flat_ptr, tl.full((1, BC), 1.0, tl.float32), l, C, K, D, BC, BD)
            excess = tl.where(pairs, products - BETWEEN * (count[:, None] * count[None, :])[None], 0.0)
            feature_weight = 2 * pair_weight * sign(excess)
        inverse = _inverse_lengths(centred_ptr, norm_ptr, present, l, C, K, D, BC, BD)
        along = tl.zeros((1, BC), tl.float32)
        if MEAN != -1:
            correlation = _correlations(centred_ptr, inverse, l, C, K, D, BC, BD)
            mean_sign = tl.where(pairs, sign(correlation - MEAN), 0.0)
            along = tl.sum(mean_sign * correlation, 2)
            mean_weight = mean_sign * inverse[:, None, :]
        else:
            for start in range(0, D, BD):
                direction = _tile(centred_ptr, l, start, C, K, D, BC, BD) * inverse[:, :, None]
                along += tl.sum(direction * tl.sum(direction, 1)[:, None, :], 2)
        for start in range(0, D, BD):
            entry = start + tl.arange(0, BD)
            at = ((a[None, :] * K + l[:, None]) * D)[:, :, None] + entry[None, None, :]
            inside = (a < C)[None, :, None] & (entry < D)[None, None, :]
            s = _tile(flat_ptr, l, start, C, K, D, BC, BD)
            weighted = w[None, :, None] * s
            if BETWEEN == -1:
                both = w[None, :, None] * tl.sum(s, 1)[:, None, :] + tl.sum(weighted, 1)[:, None, :]
                g = 2 * both - 8 * weighted
            else:
                g = -4 * weighted
                if MEAN_OF_CLASSES:
                    g += _combine(flat_ptr, feature_weight, l, start, C, K, D, BC, BD)
            tl.store(tables_ptr + at, g * to_g, mask=inside)
            direction = _tile(centred_ptr, l, start, C, K, D, BC, BD) * inverse[:, :, None]
            if MEAN == -1:
                h = tl.sum(direction, 1)[:, None, :]
            else:
                h = _combine(centred_ptr, mean_weight, l, start, C, K, D, BC, BD)
            h = (h - direction * along[:, :, None]) * (inverse[:, :, None] * to_h) + nan_if_bad
            tl.store(mean_ptr + at, h, mask=inside)
    else:
        q = tl.zeros((BK,), tl.float64)  # sums over pairs of FD and of the naive FD, the latter doubled (w = 1)
        naive_q = tl.zeros((BK,), tl.float64)
        md = tl.zeros((BK,), tl.float64)
        squared_length = tl.zeros((BK, BC), tl.float64)
        for first in range(0, K, BK):
            l = first + tl.arange(0, BK)
            inverse = _inverse_lengths(centred_ptr, norm_ptr, present, l, C, K, D, BC, BD)
            own = tl.zeros((BK, BC), tl.float32)
            for start in range(0, D, BD):
                s = _tile(flat_ptr, l, start, C, K, D, BC, BD)
                own += tl.sum(s * s, 2)
                if BETWEEN == -1:
                    total = tl.sum(s, 1)
                    weighted = tl.sum(w[None, :, None] * s, 1)
                    q -= tl.sum(total * weighted, 1).to(tl.float64)
                    naive_q -= tl.sum(total * total, 1).to(tl.float64)
                if MEAN == -1:
                    direction = _tile(centred_ptr, l, start, C, K, D, BC, BD) * inverse[:, :, None]
                    total = tl.sum(direction, 1)
                    md += tl.sum(total * total, 1).to(tl.float64)
                    md -= tl.sum(tl.sum(direction * direction, 2), 1).to(tl.float64)
            squared_length += own.to(tl.float64)
            if MEAN_OF_CLASSES:
                products = _correlations(flat_ptr, tl.full((BK, BC), 1.0, tl.float32), l, C, K, D, BC, BD)
                expected = ((BETWEEN * count[:, None]).to(tl.float64) * count[None, :].to(tl.float64))[None]
                counted = pairs & (l < K)[:, None, None]
                deviation = tl.where(counted, tl.abs(products.to(tl.float64) - expected), 0.0)
                q += tl.sum(tl.sum(pair_weight.to(tl.float64) * deviation, 2), 1)
                naive_q += tl.sum(tl.sum(deviation, 2), 1)
            if MEAN != -1:
                correlation = _correlations(centred_ptr, inverse, l, C, K, D, BC, BD)
                counted = pairs & (l < K)[:, None, None]
                deviation = tl.where(counted, tl.abs(correlation - MEAN), 0.0)
                md += tl.sum(tl.sum(deviation, 2), 1).to(tl.float64)
        w64 = w.to(tl.float64)
        counts = count.to(tl.float64)
        lengths = tl.sum(squared_length, 0)
        fd_sum = tl.sum(q, 0)
        naive_sum = tl.sum(naive_q, 0)
        md_sum = tl.sum(md, 0)
        square_sum = tl.load(square_ptr + a, mask=a < C, other=0.0).to(tl.float64)
        present_classes = tl.sum(present.to(tl.float64), 0)
        divisor = K * at_least_one * at_least_one
        if BETWEEN == -1:
            fd_sum += tl.sum(w64 * (2 * lengths - square_sum), 0)
            naive_sum += tl.sum(2 * lengths - square_sum, 0)
            fd = 2 * (K * (n - 1) * tl.sum(w64 * counts, 0) - fd_sum) / divisor
            nfd = (K * (n - 1) * n - naive_sum) / divisor
        else:
            within = K * counts * counts - lengths - (K * counts - square_sum)
            fd = (2 * tl.sum(w64 * within, 0) + fd_sum) / divisor
            nfd = (tl.sum(within, 0) + naive_sum) / divisor
        if MEAN == -1:
            md_sum += K * present_classes * (present_classes - 1)
        md_value = md_sum * half_to_h
        ed = tl.load(square_ptr + 2 * C).to(tl.float64)
        if EMBEDDING == -1:
            ed += K * (K - 1) * n - tl.sum(square_sum, 0)
        if K == 1:
            ed = n * 0
        ed = ed / (at_least_one * (K * K))
        md_value += nan_if_bad
        to_ed = 2.0 / (at_least_one * (K * K))
        tl.store(values_ptr, fd.to(values_ptr.dtype.element_ty))
        tl.store(values_ptr + 1, md_value.to(values_ptr.dtype.element_ty))
        tl.store(values_ptr + 2, ed.to(values_ptr.dtype.element_ty))
        tl.store(values_ptr + 3, nfd.to(values_ptr.dtype.element_ty))
        if loss_ptr is not None:
            divisor = tl.load(ce_ptr + 1).to(tl.float64)
            divisor = tl.where(divisor == 0, 1.0, divisor)
            ce = tl.load(ce_ptr).to(tl.float64) / divisor
            loss = ce + wide_lambd * (FD * fd + MD * md_value + ED * ed)
            tl.store(values_ptr + CE, ce.to(values_ptr.dtype.element_ty))
            tl.store(loss_ptr, loss.to(loss_ptr.dtype.element_ty))
            tl.store(scale_ptr + 1, (factor / divisor).to(tl.float32))
            to_ed *= to_loss * ED
            if HAS_ATTENTION or NAIVE:
                tl.store(values_ptr + ATTENTION + a, w.to(values_ptr.dtype.element_ty), mask=a < C)
        tl.store(scale_ptr, to_ed.to(tl.float32))
