"""The two streaming passes for the paper's sizes: k d of a few thousand at most, k small.

One warp processes a sample: a tile is BS samples x W entries of one embedding, and the k embeddings, H tiles each, are
unrolled. Therefore k is not padded, row sums stay inside a warp, u = sum_l z_l needs no exchange, and loops have no
barrier.
"""

import triton
import triton.language as tl

from adcorre_kernels.gpu.class_sort import sort_buffers, sort_class
from adcorre_kernels.gpu.rows import DO_NOT_SPECIALIZE, centre, labels_of, load_scalar, sign, table_pointers, zeros


@triton.jit
def _load(x_ptr, index, sn, sk, K: tl.constexpr, D: tl.constexpr, W: tl.constexpr):
    """K tuples of H tiles (BS, W) in x's dtype: samples `index` (BS,), zeros for a negative index."""
    H: tl.constexpr = (D + W - 1) // W
    entry = tl.arange(0, W)
    row = x_ptr + index.to(tl.int64)[:, None] * sn + entry[None, :]
    vectors = ()
    for l in tl.static_range(K):
        tiles = ()
        for h in tl.static_range(H):
            inside = (index >= 0)[:, None] & (h * W + entry < D)[None, :]
            at = row + (tl.full((), l, tl.int64) * sk + h * W)
            tiles = tiles + (tl.load(at, mask=inside, other=0.0, eviction_policy="evict_first"),)
        vectors = vectors + (tiles,)
    return vectors


@triton.jit(do_not_specialize=DO_NOT_SPECIALIZE)
def warp_statistics(
    x_ptr,
    targets_ptr,
    scratch_ptr,
    sums_ptr,
    sn,
    sk,
    n,
    chunk,
    ignore_index,
    C,
    capacity,
    offset,
    K: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    BS: tl.constexpr,
    BL: tl.constexpr,
    ROWS: tl.constexpr,
    SLOT: tl.constexpr,
    TARGET: tl.constexpr,
    LOCAL: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    """Sums over the program's samples, one slot per class: S (k, d), M (k, d), sums of |x| and of |z|^2 (k,) each.

    `sums` holds ED's sum, one entry per program, and from `offset` on the slots: slot (p, c) is at p C + c if each
    program has one class (LOCAL), and at p + c if it has a range of the order of all samples. The slot of a class
    without samples in the program is not written. ROWS: rows of a slot: BS, one for each sample of a step, so that no
    warp waits for another at the end of a run; or 1, their sum.
    """
    H: tl.constexpr = (D + W - 1) // W
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    entry = tl.arange(0, W)
    lane = tl.arange(0, BS)
    if LOCAL:
        c = tl.program_id(1)
        low = tl.program_id(0) * chunk
        order_ptr, last_step = sort_class(
            targets_ptr, scratch_ptr, program, low, tl.minimum(low + chunk, n), c, ignore_index, C, capacity, BL, BS
        )
        step = 0
    else:
        order_ptr, run_class_ptr, run_end_ptr, _count, _bad = sort_buffers(scratch_ptr, C, capacity, BS)
        step = program * chunk
        last_step = tl.minimum(step + chunk, tl.load(run_end_ptr + C - 1))
    slots_ptr = sums_ptr + offset + program.to(tl.int64) * (ROWS * SLOT)
    squares = zeros(H, BS, W)
    deviation_sum = tl.zeros((BS,), tl.float32)
    if PREFETCH:
        index = tl.load(order_ptr + step * BS + lane, mask=step + 0 * lane < last_step, other=-1)
        next_vectors = _load(x_ptr, index, sn, sk, K, D, W)
    while step < last_step:
        slot_ptr = slots_ptr
        run_end = last_step
        if not LOCAL:
            c = tl.load(run_class_ptr + step)
            slot_ptr += c.to(tl.int64) * (ROWS * SLOT)
            run_end = tl.minimum(tl.load(run_end_ptr + c), last_step)
        direction_sum = zeros(K * H, BS, W)
        centred_sum = zeros(K * H, BS, W)
        norm_sum = zeros(K, BS, 1)
        square_sum = tl.zeros((BS,), tl.float32)
        for s in tl.range(step, run_end, num_stages=1):
            if PREFETCH:
                vectors = next_vectors
                index = tl.load(order_ptr + (s + 1) * BS + lane, mask=s + 1 + 0 * lane < last_step, other=-1)
                next_vectors = _load(x_ptr, index, sn, sk, K, D, W)
            else:
                index = tl.load(order_ptr + s * BS + lane)
                vectors = _load(x_ptr, index, sn, sk, K, D, W)
            total = zeros(H, BS, W)
            normalized = ()
            new_directions = ()
            new_centred = ()
            new_norms = ()
            for l in tl.static_range(K):
                centred, inverse, length = centre(vectors[l], D, W)
                new_total = ()
                for h in tl.static_range(H):
                    new_total = new_total + (total[h] + centred[h] * inverse[:, None],)
                    new_directions = new_directions + (direction_sum[l * H + h] + centred[h] * inverse[:, None],)
                    new_centred = new_centred + (centred_sum[l * H + h] + centred[h],)
                total = new_total
                new_norms = new_norms + (norm_sum[l] + length[:, None],)
                square_sum += tl.where(inverse == 0, 0.0, 1.0)
                if TARGET != -1:
                    normalized = normalized + ((centred, inverse),)
            direction_sum = new_directions
            centred_sum = new_centred
            norm_sum = new_norms
            if TARGET == -1:
                new_squares = ()
                for h in tl.static_range(H):
                    new_squares = new_squares + (squares[h] + total[h] * total[h],)
                squares = new_squares
            else:
                present = tl.load(order_ptr + s * BS + lane) >= 0
                for l in tl.static_range(K):
                    for m in tl.static_range(l):
                        deviation = tl.abs(_correlation(normalized[l], normalized[m]) - TARGET)
                        deviation_sum += tl.where(present, 2 * deviation, 0.0)
        for l in tl.static_range(K):
            for h in tl.static_range(H):
                out = slot_ptr + (l * D + h * W)
                _store_sums(out, direction_sum[l * H + h], h * W + entry < D, ROWS, SLOT)
                _store_sums(out + K * D, centred_sum[l * H + h], h * W + entry < D, ROWS, SLOT)
            _store_sums(slot_ptr + 2 * K * D + l, norm_sum[l], None, ROWS, SLOT)
            counted = square_sum[:, None] if l == 0 else tl.zeros((BS, 1), tl.float32)
            _store_sums(slot_ptr + 2 * K * D + K + l, counted, None, ROWS, SLOT)
        step = run_end
    embedding_sum = tl.sum(deviation_sum, 0)
    for h in tl.static_range(H):
        embedding_sum += tl.sum(tl.sum(squares[h], 1), 0)
    tl.store(sums_ptr + program, embedding_sum)


@triton.jit
def _store_sums(out_ptr, sums, inside, ROWS: tl.constexpr, SLOT: tl.constexpr):
    """Store (BS, w) to the rows of a slot from out_ptr on, or their sum to its one row."""
    entry = tl.arange(0, sums.shape[1])
    if ROWS == 1:
        tl.store(out_ptr + entry, tl.sum(sums, 0), mask=inside)
    else:
        at = out_ptr + tl.arange(0, ROWS)[:, None] * SLOT + entry[None, :]
        tl.store(at, sums, mask=None if inside is None else inside[None, :])


@triton.jit
def _correlation(a, b):
    """z_a . z_b (BS,) of two (centred tiles, inverse length)."""
    products = a[0][0] * b[0][0]
    for h in tl.static_range(1, len(a[0])):
        products += a[0][h] * b[0][h]
    return tl.sum(products, 1) * a[1] * b[1]


@triton.jit
def _sample(targets_ptr, order_ptr, position, high, ignore_index, C, SORTED: tl.constexpr):
    """Samples at `position` (BS,), the mask of existing ones, and their labels, -1 for an ignored sample."""
    valid = position < high
    index = position
    if SORTED:
        index = tl.load(order_ptr + position, mask=valid, other=0).to(tl.int32)
    label, _bad = labels_of(targets_ptr, index, valid, ignore_index, C)
    return index, valid, label


@triton.jit(do_not_specialize=DO_NOT_SPECIALIZE, do_not_specialize_on_alignment=["fd_ptr", "md_ptr", "ed_ptr"])
def warp_gradient(
    x_ptr,
    targets_ptr,
    order_ptr,
    fd_ptr,
    md_ptr,
    ed_ptr,
    feature_ptr,
    mean_ptr,
    scale_ptr,
    out_ptr,
    sn,
    sk,
    n,
    chunk,
    ignore_index,
    C,
    K: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    BS: tl.constexpr,
    TARGET: tl.constexpr,
    SORTED: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    """dL/dx of samples [chunk p, chunk (p + 1)), in their order in x or, with SORTED, in `order`.

    The tables of few classes stay in L1. With many classes, samples are sorted so that consecutive samples read the
    same rows of the tables.
    """
    H: tl.constexpr = (D + W - 1) // W
    low = tl.program_id(0) * chunk
    entry = tl.arange(0, W)
    lane = tl.arange(0, BS)
    mean_ptr, scale_ptr = table_pointers(feature_ptr, mean_ptr, scale_ptr, C, K * D)
    scale = tl.load(scale_ptr)
    ignored_gradient = scale * 0.0  # zero, or NaN if a label is bad
    to_feature = load_scalar(fd_ptr)
    to_mean = load_scalar(md_ptr)
    to_total = load_scalar(ed_ptr) * scale
    high = tl.minimum(low + chunk, n)
    if PREFETCH:
        next_index, next_valid, next_label = _sample(targets_ptr, order_ptr, low + lane, high, ignore_index, C, SORTED)
        next_vectors = _load(x_ptr, tl.where(next_label >= 0, next_index, -1), sn, sk, K, D, W)
    for start in tl.range(low, high, BS, num_stages=1):
        if PREFETCH:
            index, valid, label, vectors = next_index, next_valid, next_label, next_vectors
            next_index, next_valid, next_label = _sample(
                targets_ptr, order_ptr, start + BS + lane, high, ignore_index, C, SORTED
            )
            next_vectors = _load(x_ptr, tl.where(next_label >= 0, next_index, -1), sn, sk, K, D, W)
        else:
            index, valid, label = _sample(targets_ptr, order_ptr, start + lane, high, ignore_index, C, SORTED)
            vectors = _load(x_ptr, tl.where(label >= 0, index, -1), sn, sk, K, D, W)
        takes_part = label >= 0
        total = zeros(H, BS, W)
        normalized = ()
        for l in tl.static_range(K):
            centred, inverse, _ = centre(vectors[l], D, W)
            new_total = ()
            for h in tl.static_range(H):
                new_total = new_total + (total[h] + centred[h] * inverse[:, None],)
            total = new_total
            normalized = normalized + ((centred, inverse),)
        row = tl.maximum(label, 0).to(tl.int64)[:, None] * (K * D) + entry[None, :]
        out = out_ptr + index.to(tl.int64)[:, None] * (K * D) + entry[None, :]
        for l in tl.static_range(K):
            centred, inverse = normalized[l]
            others = total
            if TARGET != -1:
                others = zeros(H, BS, W)
                for m in tl.static_range(K):
                    if m != l:
                        weight = sign(_correlation(normalized[l], normalized[m]) - TARGET) * normalized[m][1]
                        new_others = ()
                        for h in tl.static_range(H):
                            new_others = new_others + (others[h] + weight[:, None] * normalized[m][0][h],)
                        others = new_others
            g = ()
            products = tl.zeros((BS, W), tl.float32)
            for h in tl.static_range(H):
                inside = (h * W + entry < D)[None, :]
                feature = tl.load(feature_ptr + row + (l * D + h * W), mask=inside, other=0.0)
                piece = to_feature * feature + to_total * others[h]
                products += piece * centred[h]
                g = g + (piece,)
            along = tl.sum(products, 1) * inverse * inverse * inverse
            for h in tl.static_range(H):
                inside = (h * W + entry < D)[None, :]
                mean = tl.load(mean_ptr + row + (l * D + h * W), mask=inside, other=0.0)
                gradient = to_mean * mean + (g[h] * inverse[:, None] - centred[h] * along[:, None])
                gradient = tl.where(takes_part[:, None], gradient, ignored_gradient)
                at = out + (l * D + h * W)
                tl.store(at, gradient.to(out_ptr.dtype.element_ty), mask=valid[:, None] & inside, cache_modifier=".cs")
