"""The two streaming passes for every size beyond `warp_per_sample`: a program processes one sample at a time.

A tile is BK embeddings x BD entries of one sample. Up to 8,192 entries (k d <= 4,096, padded) it holds the whole
sample, which is then read once. Larger samples are processed in blocks of BK embeddings: each block's class sums by its
own program, ED by `program_embedding`, and the gradient in two passes over the sample, the second one from the cache.
"""

import triton
import triton.language as tl

from adcorre_kernels.gpu.class_sort import sort_buffers, sort_class
from adcorre_kernels.gpu.rows import DO_NOT_SPECIALIZE, centre, labels_of, load_scalar, sign, table_pointers


@triton.jit
def _load(x_ptr, index, block, sn, sk, K: tl.constexpr, D: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr):
    """Embeddings [BK block, BK (block + 1)) of sample `index`: (BK, BD) in x's dtype; zeros where index is negative."""
    row = block * BK + tl.arange(0, BK)
    entry = tl.arange(0, BD)
    rows = tl.where(index >= 0, K, 0)
    at = x_ptr + tl.cast(index, tl.int64) * sn + row.to(tl.int64)[:, None] * sk + entry[None, :]
    return tl.load(at, mask=(row < rows)[:, None] & (entry < D)[None, :], other=0.0, eviction_policy="evict_first")


@triton.jit
def _direction(x_ptr, index, block, sn, sk, K: tl.constexpr, D: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr):
    """z (BK, BD) of the same, and the inverse lengths (BK,)."""
    centred, inverse, _ = centre((_load(x_ptr, index, block, sn, sk, K, D, BK, BD),), D, BD)
    return centred[0] * inverse[:, None], inverse


@triton.jit
def _deviations(
    x_ptr, z, index, block, sn, sk, K: tl.constexpr, D: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, TARGET
):
    """sum over m != l of |z_l . z_m - TARGET| (BK,), the rows z_m read again one by one."""
    row = block * BK + tl.arange(0, BK)
    deviation = tl.zeros((BK,), tl.float32)
    for m in range(K):
        other, _inverse = _direction(x_ptr, index, m, sn, sk, K, D, 1, BD)
        correlation = tl.sum(z * other, 1)
        deviation += tl.where((row < K) & (row != m), tl.abs(correlation - TARGET), 0.0)
    return deviation


@triton.jit
def _signed_sum(
    x_ptr, z, index, block, sn, sk, K: tl.constexpr, D: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, TARGET
):
    """sum over m != l of sgn(z_l . z_m - TARGET) z_m (BK, BD)."""
    row = block * BK + tl.arange(0, BK)
    others = tl.zeros((BK, BD), tl.float32)
    for m in range(K):
        other, _inverse = _direction(x_ptr, index, m, sn, sk, K, D, 1, BD)
        weight = tl.where(row != m, sign(tl.sum(z * other, 1) - TARGET), 0.0)
        others += weight[:, None] * other
    return others


@triton.jit(do_not_specialize=DO_NOT_SPECIALIZE)
def program_statistics(
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
    BD: tl.constexpr,
    BK: tl.constexpr,
    BL: tl.constexpr,
    SLOT: tl.constexpr,
    TARGET: tl.constexpr,
    LOCAL: tl.constexpr,
):
    """`warp_statistics` for larger samples; the third axis of the grid is the block of embeddings."""
    block = tl.program_id(2)
    program = (block * tl.num_programs(0) + tl.program_id(0)) * tl.num_programs(1) + tl.program_id(1)
    row = block * BK + tl.arange(0, BK)
    entry = tl.arange(0, BD)
    first_slot = tl.program_id(0)
    if LOCAL:
        c = tl.program_id(1)
        first_slot = first_slot * C + c
        low = tl.program_id(0) * chunk
        order_ptr, last_step = sort_class(
            targets_ptr, scratch_ptr, program, low, tl.minimum(low + chunk, n), c, ignore_index, C, capacity, BL, 1
        )
        step = 0
    else:
        order_ptr, run_class_ptr, run_end_ptr, _count, _bad = sort_buffers(scratch_ptr, C, capacity, 1)
        step = tl.program_id(0) * chunk
        last_step = tl.minimum(step + chunk, tl.load(run_end_ptr + C - 1))
    slots_ptr = sums_ptr + offset + first_slot.to(tl.int64) * SLOT
    squares = tl.zeros((BD,), tl.float32)
    deviations = tl.zeros((BK,), tl.float32)
    next_vectors = _load(x_ptr, tl.load(order_ptr + step, mask=step < last_step, other=-1), block, sn, sk, K, D, BK, BD)
    while step < last_step:
        slot_ptr = slots_ptr
        run_end = last_step
        if not LOCAL:
            c = tl.load(run_class_ptr + step)
            slot_ptr += c.to(tl.int64) * SLOT
            run_end = tl.minimum(tl.load(run_end_ptr + c), last_step)
        direction_sum = tl.zeros((BK, BD), tl.float32)
        centred_sum = tl.zeros((BK, BD), tl.float32)
        norm_sum = tl.zeros((BK,), tl.float32)
        square_sum = tl.zeros((BK,), tl.float32)
        for s in tl.range(step, run_end, num_stages=1):
            x = next_vectors
            index = tl.load(order_ptr + s + 1, mask=s + 1 < last_step, other=-1)
            next_vectors = _load(x_ptr, index, block, sn, sk, K, D, BK, BD)
            centred, inverse, length = centre((x,), D, BD)
            z = centred[0] * inverse[:, None]
            direction_sum += z
            centred_sum += centred[0]
            norm_sum += length
            square_sum += tl.where(inverse == 0, 0.0, 1.0)
            if BK >= K:
                if TARGET == -1:
                    total = tl.sum(z, 0)
                    squares += total * total
                else:
                    current = tl.load(order_ptr + s)
                    deviations += _deviations(x_ptr, z, current, block, sn, sk, K, D, BK, BD, TARGET)
        out = slot_ptr + row[:, None] * D + entry[None, :]
        inside = (row < K)[:, None] & (entry < D)[None, :]
        tl.store(out, direction_sum, mask=inside)
        tl.store(out + K * D, centred_sum, mask=inside)
        tl.store(slot_ptr + 2 * K * D + row, norm_sum, mask=row < K)
        tl.store(slot_ptr + 2 * K * D + K + row, square_sum, mask=row < K)
        step = run_end
    if BK >= K:
        tl.store(sums_ptr + program, tl.sum(squares, 0) + tl.sum(deviations, 0))


@triton.jit(do_not_specialize=DO_NOT_SPECIALIZE)
def program_embedding(
    x_ptr,
    targets_ptr,
    sums_ptr,
    sn,
    sk,
    n,
    chunk,
    ignore_index,
    C,
    K: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    BK: tl.constexpr,
    TARGET: tl.constexpr,
):
    """ED's sum over samples [chunk p, chunk (p + 1)), for samples larger than a tile."""
    low = tl.program_id(0) * chunk
    result = 0.0
    for index in tl.range(low, tl.minimum(low + chunk, n), num_stages=1):
        label, _ = labels_of(targets_ptr, index, True, ignore_index, C)
        if label >= 0:
            total = tl.zeros((BD,), tl.float32)
            deviations = tl.zeros((BK,), tl.float32)
            for block in range(tl.cdiv(K, BK)):
                z, inverse = _direction(x_ptr, index, block, sn, sk, K, D, BK, BD)
                if TARGET == -1:
                    total += tl.sum(z, 0)
                else:
                    deviations += _deviations(x_ptr, z, index, block, sn, sk, K, D, BK, BD, TARGET)
            result += tl.sum(total * total, 0) + tl.sum(deviations, 0)
    tl.store(sums_ptr + tl.program_id(0), result)


@triton.jit(do_not_specialize=DO_NOT_SPECIALIZE, do_not_specialize_on_alignment=["fd_ptr", "md_ptr", "ed_ptr"])
def program_gradient(
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
    BD: tl.constexpr,
    BK: tl.constexpr,
    TARGET: tl.constexpr,
    SORTED: tl.constexpr,
):
    """`warp_gradient` for larger samples."""
    entry = tl.arange(0, BD)
    low = tl.program_id(0) * chunk
    mean_ptr, scale_ptr = table_pointers(feature_ptr, mean_ptr, scale_ptr, C, K * D)
    scale = tl.load(scale_ptr)
    to_feature = load_scalar(fd_ptr)
    to_mean = load_scalar(md_ptr)
    to_total = load_scalar(ed_ptr) * scale
    for position in tl.range(low, tl.minimum(low + chunk, n), num_stages=1):
        index = position
        if SORTED:
            index = tl.load(order_ptr + position).to(tl.int32)
        label, _ = labels_of(targets_ptr, index, True, ignore_index, C)
        read = tl.where(label >= 0, index, -1)
        total = tl.zeros((1, BD), tl.float32)
        if (BK < K) & (TARGET == -1):
            for block in range(tl.cdiv(K, BK)):
                z, inverse = _direction(x_ptr, read, block, sn, sk, K, D, BK, BD)
                total += tl.sum(z, 0)[None, :]
        for block in range(tl.cdiv(K, BK)):
            row = block * BK + tl.arange(0, BK)
            inside = (row < K)[:, None] & (entry < D)[None, :]
            at = (row * D)[:, None] + entry[None, :]
            z, inverse = _direction(x_ptr, read, block, sn, sk, K, D, BK, BD)
            if TARGET != -1:
                others = _signed_sum(x_ptr, z, read, block, sn, sk, K, D, BK, BD, TARGET)
            elif BK >= K:
                others = tl.sum(z, 0)[None, :]
            else:
                others = total
            table = tl.maximum(label, 0).to(tl.int64) * (K * D)
            g = to_feature * tl.load(feature_ptr + table + at, mask=inside, other=0.0) + to_total * others
            along = tl.sum(g * z, 1)
            gradient = (g - z * along[:, None]) * inverse[:, None]
            gradient += to_mean * tl.load(mean_ptr + table + at, mask=inside, other=0.0)
            gradient = tl.where(label >= 0, gradient, scale * 0.0)
            out = out_ptr + tl.cast(index, tl.int64) * (K * D) + at
            tl.store(out, gradient.to(out_ptr.dtype.element_ty), mask=inside, cache_modifier=".cs")
