"""FD over all pairs of samples: tiles of the correlation matrix that exist only in registers.

`pair_tables` writes z in one or two pieces of half precision, hi = z rounded and lo = z - hi rounded, for matrix units:
c = hi.hi + hi.lo + lo.hi. Values are scaled by powers of two (SCALE) to avoid float16's subnormals. `pair_values`
loops over tiles of c, `pair_gradient` multiplies each tile's signs and weights by the tables, `pair_project` turns
dL/dz into dL/dx. Derivations: kernels/README.md.
"""

import triton
import triton.language as tl

from adcorre_kernels.gpu.rows import centre, dot, labels_of, zeros

# Launch arguments that must not select a compiled variant.
DO_NOT_SPECIALIZE = ["n", "row_start", "row_stop", "padded", "tiles", "group", "ignore_index", "C"]
SCALE = tl.constexpr(1024.0)  # scale of z in the tables: |z| <= 1, the largest float16 is 65,504


@triton.jit
def _direction(x_ptr, index, takes_part, l, sn, sk, D: tl.constexpr, W: tl.constexpr):
    """z (BS, W) and 1 / |x - mean| (BS,) of embedding l of samples `index`; zeros for ignored samples."""
    entry = tl.arange(0, W)
    at = x_ptr + index.to(tl.int64)[:, None] * sn + (l.to(tl.int64) * sk + entry)[None, :]
    x = tl.load(at, mask=takes_part[:, None] & (entry < D)[None, :], other=0.0)
    centred, inverse, _ = centre((x,), D, W)
    return centred[0] * inverse[:, None], inverse


@triton.jit(do_not_specialize=DO_NOT_SPECIALIZE)
def pair_tables(
    x_ptr,
    targets_ptr,
    weights_ptr,
    table_ptr,
    labels_ptr,
    sample_weights_ptr,
    sn,
    sk,
    n,
    padded,
    ignore_index,
    C,
    D: tl.constexpr,
    DP: tl.constexpr,
    PIECES: tl.constexpr,
    W: tl.constexpr,
    BS: tl.constexpr,
):
    """table (k, PIECES, padded, DP), labels and weights (padded,) of samples [BS p, BS (p + 1)), embedding p_1.

    Samples that are ignored or beyond n: zeros, label -1, weight 0; weight NaN for a bad label.
    """
    index = tl.program_id(0) * BS + tl.arange(0, BS)
    l = tl.program_id(1)
    entry = tl.arange(0, W)
    label, bad = labels_of(targets_ptr, index, index < n, ignore_index, C)
    z, _ = _direction(x_ptr, index, label >= 0, l, sn, sk, D, W)
    z = z * SCALE
    at = table_ptr + (l * PIECES).to(tl.int64) * padded * DP
    at += index.to(tl.int64)[:, None] * DP + entry[None, :]
    inside = (index < padded)[:, None] & (entry < DP)[None, :]
    hi = z.to(table_ptr.dtype.element_ty)
    tl.store(at, hi, mask=inside)
    if PIECES == 2:
        lo = z - hi.to(tl.float32)
        tl.store(at + padded.to(tl.int64) * DP, lo.to(table_ptr.dtype.element_ty), mask=inside)
    if l == 0:
        weight = tl.load(weights_ptr + label, mask=label >= 0, other=0.0)
        tl.store(labels_ptr + index, label, mask=index < padded)
        tl.store(sample_weights_ptr + index, tl.where(bad, float("nan"), weight), mask=index < padded)


@triton.jit
def _pieces(base_ptr, row, start, piece, DP: tl.constexpr, PIECES: tl.constexpr, B: tl.constexpr):
    """PIECES tiles (R, B) of rows `row`, entries from `start` on; `piece` is the stride between pieces."""
    entry = start + tl.arange(0, B)
    at = base_ptr + (row * DP)[:, None] + entry[None, :]
    tiles = ()
    for p in tl.static_range(PIECES):
        if DP % B == 0:
            tiles = tiles + (tl.load(at + p * piece),)
        else:
            tiles = tiles + (tl.load(at + p * piece, mask=(entry < DP)[None, :], other=0.0),)
    return tiles


@triton.jit
def _chunks(base_ptr, row, piece, DP: tl.constexpr, PIECES: tl.constexpr, B: tl.constexpr):
    """DP // B tuples of PIECES tiles (R, B): whole rows `row`."""
    chunks = ()
    for h in tl.static_range(DP // B):
        chunks = chunks + (_pieces(base_ptr, row, h * B, piece, DP, PIECES, B),)
    return chunks


@triton.jit
def _multiply(a, b, c):
    """c + a b, from pieces, the smallest products first; lo.lo is below their precision.

    Matrix units round every running sum towards zero. With two pieces, which have nearly the precision of float32, the
    sums start from zero and are added outside, where rounding is to nearest. One piece has larger errors anyway.
    """
    if len(a) == 2:
        part = dot(a[1], b[0], tl.zeros_like(c))
        part = dot(a[0], b[1], part)
        return c + dot(a[0], b[0], part)
    else:
        return dot(a[0], b[0], c)


@triton.jit
def _transposed(tiles):
    result = ()
    for piece in tl.static_range(len(tiles)):
        result = result + (tl.trans(tiles[piece]),)
    return result


@triton.jit
def _resident_correlations(own, other, BM: tl.constexpr, BN: tl.constexpr):
    """z z^T SCALE^2 (BM, BN) of whole rows in chunks."""
    c = tl.zeros((BM, BN), tl.float32)
    for h in tl.static_range(len(own)):
        c = _multiply(own[h], _transposed(other[h]), c)
    return c


@triton.jit
def _correlations(
    own_ptr, other_ptr, piece, DP: tl.constexpr, PIECES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """z z^T SCALE^2 (BM, BN) for rows that are too long to be resident: BK entries at a time."""
    c = tl.zeros((BM, BN), tl.float32)
    for start in tl.range(0, DP, BK, num_stages=STAGES):
        a = _pieces(own_ptr, tl.arange(0, BM), start, piece, DP, PIECES, BK)
        b = _pieces(other_ptr, tl.arange(0, BN), start, piece, DP, PIECES, BK)
        c = _multiply(a, _transposed(b), c)
    return c


@triton.jit
def _excess(c, row, column, row_label, label, TARGET: tl.constexpr, COMPLETE: tl.constexpr):
    """(c - Phi) SCALE^2, and the mask of pairs."""
    same = row_label[:, None] == label[None, :]
    if COMPLETE:
        target = tl.where(same, SCALE * SCALE, TARGET * SCALE * SCALE)
        return c - target, row[:, None] != column[None, :]
    return c - TARGET * SCALE * SCALE, same == 0


@triton.jit(do_not_specialize=DO_NOT_SPECIALIZE)
def pair_values(
    table_ptr,
    labels_ptr,
    sample_weights_ptr,
    partial_ptr,
    row_start,
    row_stop,
    padded,
    tiles,
    group,
    DP: tl.constexpr,
    PIECES: tl.constexpr,
    TARGET: tl.constexpr,
    COMPLETE: tl.constexpr,
    WHOLE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    RESIDENT: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Sums over rows i and columns j of (w_i + w_j) |Phi - c| and of |Phi - c|: two numbers per program.

    A block is `group` x `group` tiles of BM x BM pairs; a program computes one row of a block's tiles. WHOLE: blocks on
    and above the diagonal, `tiles` per side, folded to a rectangle; tiles above the diagonal count twice. Otherwise
    there are `tiles` blocks per row, and every tile counts once.
    """
    within = tl.program_id(0) % group
    block = tl.program_id(0) // group
    l = tl.program_id(1)
    if WHOLE:
        odd = tiles % 2
        width = tiles + 1 - odd
        fold = block // width
        step = block % width
        upper = step < tiles - fold
        block_row = tl.where(upper, fold, tiles - 1 - fold + odd)
        block_column = tl.where(upper, fold + step, step - 1 + odd)
    else:
        block_row = block // tiles
        block_column = block % tiles
    first_row = row_start + (block_row * group + within) * BM
    first = block_column * group * BM
    last = tl.minimum(first + group * BM, padded)
    if WHOLE:
        first = tl.maximum(first, first_row)
    last = tl.where(first_row < row_stop, last, first)
    own_row = first_row + tl.arange(0, BM)
    counts = own_row < row_stop
    base_ptr = table_ptr + (l * PIECES).to(tl.int64) * padded * DP
    piece = padded.to(tl.int64) * DP
    own_ptr = base_ptr + tl.minimum(first_row, padded - BM).to(tl.int64) * DP  # not used if there are no rows
    row_label = tl.load(labels_ptr + own_row, mask=counts, other=-1)
    plain = tl.zeros((BM,), tl.float32)
    weighted = tl.zeros((BM,), tl.float32)
    if RESIDENT:
        own = _chunks(own_ptr, tl.arange(0, BM), piece, DP, PIECES, BK)
    for start in tl.range(first, last, BN, num_stages=STAGES if RESIDENT else 1):
        other_ptr = base_ptr + tl.cast(start, tl.int64) * DP
        if RESIDENT:
            c = _resident_correlations(own, _chunks(other_ptr, tl.arange(0, BN), piece, DP, PIECES, BK), BM, BN)
        else:
            c = _correlations(own_ptr, other_ptr, piece, DP, PIECES, BM, BN, BK, STAGES)
        column = start + tl.arange(0, BN)
        label = tl.load(labels_ptr + column)
        weight = tl.load(sample_weights_ptr + column)
        times = tl.where(start < first_row + BM, 1.0, 2.0) if WHOLE else 1.0
        present = tl.where(label >= 0, times, weight * 0.0)  # NaN for a bad label
        excess, pair = _excess(c, own_row, column, row_label, label, TARGET, COMPLETE)
        deviation = tl.where(pair, tl.abs(excess), 0.0)
        plain += tl.sum(deviation * present[None, :], 1)
        weighted += tl.sum(deviation * (weight * times)[None, :], 1)
    own_weight = tl.load(sample_weights_ptr + own_row, mask=counts, other=0.0)
    present = tl.where(row_label >= 0, 1.0, own_weight * 0.0)
    out = partial_ptr + (tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * 2
    tl.store(out, tl.sum(own_weight * plain + present * weighted, 0) * (1.0 / (SCALE * SCALE)))
    tl.store(out + 1, tl.sum(present * plain, 0) * (1.0 / (SCALE * SCALE)))


@triton.jit(do_not_specialize=DO_NOT_SPECIALIZE)
def pair_gradient(
    table_ptr,
    labels_ptr,
    sample_weights_ptr,
    out_ptr,
    row_start,
    row_stop,
    padded,
    D: tl.constexpr,
    DP: tl.constexpr,
    PIECES: tl.constexpr,
    TARGET: tl.constexpr,
    COMPLETE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    RESIDENT: tl.constexpr,
    BV: tl.constexpr,
    STAGES: tl.constexpr,
):
    """sum_j (w_i + w_j) sgn(c_ij - Phi_ij) z_j, times SCALE, for BM rows and BV entries: to out (rows, k, d).

    Rows of ignored samples are undefined.
    """
    BC: tl.constexpr = BK if RESIDENT else BV  # entries of a row in one accumulator
    l = tl.program_id(1)
    first_row = row_start + tl.program_id(0) * BM
    start_v = tl.program_id(2) * BV
    own_row = first_row + tl.arange(0, BM)
    base_ptr = table_ptr + (l * PIECES).to(tl.int64) * padded * DP
    piece = padded.to(tl.int64) * DP
    own_ptr = base_ptr + first_row.to(tl.int64) * DP
    row_label = tl.load(labels_ptr + own_row)
    row_weight = tl.load(sample_weights_ptr + own_row)
    if RESIDENT:
        own = _chunks(own_ptr, tl.arange(0, BM), piece, DP, PIECES, BK)
    total = zeros(BV // BC, BM, BC)
    for start in tl.range(0, padded, BN, num_stages=STAGES if RESIDENT else 1):
        other_ptr = base_ptr + tl.cast(start, tl.int64) * DP
        if RESIDENT:
            other = _chunks(other_ptr, tl.arange(0, BN), piece, DP, PIECES, BK)
            c = _resident_correlations(own, other, BM, BN)
        else:
            c = _correlations(own_ptr, other_ptr, piece, DP, PIECES, BM, BN, BK, STAGES)
        column = start + tl.arange(0, BN)
        label = tl.load(labels_ptr + column)
        weight = tl.load(sample_weights_ptr + column)
        excess, pair = _excess(c, own_row, column, row_label, label, TARGET, COMPLETE)
        # Ignored columns need no mask: their z is 0.
        sign = tl.where(pair & (excess > 0), 1.0, 0.0) - tl.where(pair & (excess < 0), 1.0, 0.0)
        signed = (row_weight[:, None] + weight[None, :]) * sign
        hi = signed.to(table_ptr.dtype.element_ty)
        left = (hi,)
        if PIECES == 2:
            left = left + ((signed - hi.to(tl.float32)).to(table_ptr.dtype.element_ty),)
        new_total = ()
        for h in tl.static_range(BV // BC):
            if RESIDENT:
                new_total = new_total + (_multiply(left, other[h], total[h]),)
            else:
                right = _pieces(other_ptr, tl.arange(0, BN), start_v + h * BC, piece, DP, PIECES, BC)
                new_total = new_total + (_multiply(left, right, total[h]),)
        total = new_total
    out_row = (own_row - row_start).to(tl.int64) * tl.num_programs(1) + l
    for h in tl.static_range(BV // BC):
        entry = start_v + h * BC + tl.arange(0, BC)
        inside = (own_row < row_stop)[:, None] & (entry < D)[None, :]
        tl.store(out_ptr + out_row[:, None] * D + entry[None, :], total[h], mask=inside)


@triton.jit(do_not_specialize=DO_NOT_SPECIALIZE)
def pair_project(
    x_ptr,
    targets_ptr,
    scale_ptr,
    size_ptr,
    out_ptr,
    sn,
    sk,
    n,
    row_start,
    row_stop,
    ignore_index,
    C,
    D: tl.constexpr,
    W: tl.constexpr,
    BS: tl.constexpr,
):
    """In place: g -> scale size (g - z (z.g)) / |x - mean|; 0 scale for ignored samples."""
    index = row_start + tl.program_id(0) * BS + tl.arange(0, BS)
    l = tl.program_id(1)
    entry = tl.arange(0, W)
    valid = index < row_stop
    label, _ = labels_of(targets_ptr, index, valid, ignore_index, C)
    z, inverse = _direction(x_ptr, index, label >= 0, l, sn, sk, D, W)
    at = out_ptr + (((index - row_start).to(tl.int64) * tl.num_programs(1) + l) * D)[:, None] + entry[None, :]
    inside = valid[:, None] & (entry < D)[None, :]
    g = tl.load(at, mask=inside, other=0.0)
    scale = tl.load(scale_ptr)
    gradient = (g - z * tl.sum(g * z, 1)[:, None]) * (scale * (tl.load(size_ptr) * inverse))[:, None]
    tl.store(at, tl.where((label >= 0)[:, None], gradient, scale * 0.0), mask=inside)
