"""The statistics in half precision for the paper's sizes: k from 5 to 16, k d up to 2,048, aligned rows.

Matrix units compute the Gram matrix x x^T of a sample's embeddings: products of two half-precision numbers are exact in
float32. Its diagonal has the squared lengths, and |sum_l z_l|^2 follows from it too. A program is one warp. A tile is
16 rows x W entries: SB = 16 / PK samples of PK embeddings (k padded).

For a vector whose mean is longer than its centred part, x x^T - d mean mean^T would cancel. Steps with such a vector
are deferred to a second loop, which reads them again and centres them first.
"""

import triton
import triton.language as tl

from adcorre_kernels.gpu.class_sort import sort_buffers, sort_class
from adcorre_kernels.gpu.rows import DO_NOT_SPECIALIZE, dot, inverse_length

ROWS = tl.constexpr(16)


@triton.jit
def _rows(x_ptr, index, sn, sk, K: tl.constexpr, PK: tl.constexpr):
    """Pointers to the embeddings of the samples `index`, one per row (16,), and the mask of rows to read."""
    embedding = tl.arange(0, ROWS) % PK
    row_ptr = x_ptr + (index.to(tl.int64) * sn + embedding.to(tl.int64) * sk)
    return row_ptr, (index >= 0) & (embedding < K)


@triton.jit
def _load(row_ptr, valid, h, D: tl.constexpr, W: tl.constexpr):
    """Entries [W h, W (h + 1)) of the rows (16, W); zeros outside."""
    entry = h * W + tl.arange(0, W)
    return tl.load(row_ptr[:, None] + entry[None, :], mask=valid[:, None] & (entry < D)[None, :], other=0.0)


@triton.jit
def _gram(tiles, D: tl.constexpr):
    """Means of the rows (16,), and (x - mean)(x - mean)^T (16, 16) by way of x x^T."""
    ones = tl.full((tiles[0].shape[1], 8), 1.0, tl.float32).to(tiles[0].dtype)  # no bfloat16 ones in the interpreter
    products = dot(tiles[0], tl.trans(tiles[0]), tl.zeros((ROWS, ROWS), tl.float32))
    sums = dot(tiles[0], ones, tl.zeros((ROWS, 8), tl.float32))
    for h in tl.static_range(1, len(tiles)):
        # Matrix units round running sums towards zero: start each tile from zero and add outside.
        products += dot(tiles[h], tl.trans(tiles[h]), tl.zeros((ROWS, ROWS), tl.float32))
        sums = dot(tiles[h], ones, sums)
    mean = tl.sum(sums, 1) * (1.0 / (8 * D))
    return mean, products - mean[:, None] * (mean * D)[None, :]


@triton.jit
def _means(tiles, D: tl.constexpr):
    """Means of the rows (PK,) of tiles (PK, W) that are zero from entry D on."""
    total = tiles[0]
    for h in tl.static_range(1, len(tiles)):
        total += tiles[h]
    return tl.sum(total, 1) * (1.0 / D)


@triton.jit
def _centred(row_ptr, valid, mean, h, D: tl.constexpr, W: tl.constexpr):
    """The same entries as `_load`, centred."""
    tile = _load(row_ptr, valid, h, D, W).to(tl.float32) - mean[:, None]
    return tl.where((h * W + tl.arange(0, W) < D)[None, :], tile, 0.0)


@triton.jit
def _centred_length(row_ptr, valid, D: tl.constexpr, W: tl.constexpr):
    """Means and 1 / |x - mean| (16,) as in `rows.centre`, reading the rows tile by tile."""
    total = tl.zeros((ROWS, W), tl.float32)
    for h in range((D + W - 1) // W):
        total += _load(row_ptr, valid, h, D, W).to(tl.float32)
    mean = tl.sum(total, 1) * (1.0 / D)
    squares = tl.zeros((ROWS, W), tl.float32)
    for h in range((D + W - 1) // W):
        tile = _centred(row_ptr, valid, mean, h, D, W)
        squares += tile * tile
    inverse, _length = inverse_length(tl.sum(squares, 1), mean, D)
    return mean, inverse


@triton.jit
def _by_sample(values, PK: tl.constexpr):
    """(16,) -> (SB, PK); (16, W) -> (SB, PK, W)."""
    if len(values.shape) == 1:
        return tl.reshape(values, (ROWS // PK, PK))
    else:
        return tl.reshape(values, (ROWS // PK, PK, values.shape[1]))


@triton.jit
def _deferred(index):
    """Mark the samples of an order as deferred, by negative numbers, or undo it; -1 stays -1."""
    return tl.where(index == -1, -1, -2 - index)


@triton.jit(do_not_specialize=DO_NOT_SPECIALIZE)
def gram_statistics(
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
    PK: tl.constexpr,
    BS: tl.constexpr,
    BL: tl.constexpr,
    SLOT: tl.constexpr,
    LOCAL: tl.constexpr,
    STAGES: tl.constexpr,
):
    """`warp_statistics` for ED's target -1, with slots of one row."""
    H: tl.constexpr = (D + W - 1) // W
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    row = tl.arange(0, ROWS)
    same_sample = (row // PK)[:, None] == (row // PK)[None, :]
    same_row = row[:, None] == row[None, :]
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
    slots_ptr = sums_ptr + offset + program.to(tl.int64) * SLOT
    pairs = tl.zeros((ROWS, ROWS), tl.float32)
    far_squares = 0.0  # |u|^2 of the deferred samples
    while step < last_step:
        slot_ptr = slots_ptr
        run_end = last_step
        if not LOCAL:
            c = tl.load(run_class_ptr + step)
            slot_ptr += c.to(tl.int64) * SLOT
            run_end = tl.minimum(tl.load(run_end_ptr + c), last_step)
        direction_sum = ()
        x_sum = ()
        for _ in tl.static_range(H):
            direction_sum = direction_sum + (tl.zeros((PK, W), tl.float32),)
            x_sum = x_sum + (tl.zeros((PK, W), tl.float32),)
        norm_sum = tl.zeros((ROWS,), tl.float32)
        square_sum = tl.zeros((ROWS,), tl.float32)
        deferred = 0
        for s in tl.range(step, run_end, num_stages=STAGES):
            sample_ptr = order_ptr + (s * BS + row // PK)
            index = tl.load(sample_ptr)
            row_ptr, valid = _rows(x_ptr, index, sn, sk, K, PK)
            tiles = ()
            for h in tl.static_range(H):
                tiles = tiles + (_load(row_ptr, valid, h, D, W),)
            mean, gram = _gram(tiles, D)
            squared = tl.sum(tl.where(same_row, gram, 0.0), 1)
            off_centre = tl.max((mean * mean * D > squared).to(tl.int32), 0)
            deferred += off_centre
            tl.store(sample_ptr, _deferred(index), mask=(row * 0 + off_centre) > 0)
            inverse, length = inverse_length(squared, mean, D)
            inverse = tl.where(off_centre > 0, 0.0, inverse)
            pairs += tl.where(same_sample, gram * (inverse[:, None] * inverse[None, :]), 0.0)
            new_directions = ()
            new_x = ()
            factor = _by_sample(inverse, PK)[:, :, None]
            for h in tl.static_range(H):
                x = _by_sample(tiles[h].to(tl.float32), PK)
                new_directions = new_directions + (direction_sum[h] + tl.sum(x * factor, 0),)
                new_x = new_x + (x_sum[h] + tl.sum(x, 0),)
            direction_sum = new_directions
            x_sum = new_x
            norm_sum += length
            square_sum += tl.where(inverse == 0, 0.0, 1.0)
        embedding = tl.arange(0, PK)
        direction_mean = _means(direction_sum, D)
        x_mean = _means(x_sum, D)
        for h in tl.static_range(H):
            entry = h * W + tl.arange(0, W)
            inside = (embedding < K)[:, None] & (entry < D)[None, :]
            at = slot_ptr + (embedding * D)[:, None] + entry[None, :]
            tl.store(at, direction_sum[h] - direction_mean[:, None], mask=inside)
            tl.store(at + K * D, x_sum[h] - x_mean[:, None], mask=inside)
        tl.store(slot_ptr + 2 * K * D + embedding, tl.sum(_by_sample(norm_sum, PK), 0), mask=embedding < K)
        if deferred > 0:
            tl.debug_barrier()  # all threads read what single threads wrote
            for s in tl.range(step, run_end, num_stages=1):
                index = _deferred(tl.load(order_ptr + (s * BS + row // PK)))
                if tl.max(index, 0) >= 0:
                    row_ptr, valid = _rows(x_ptr, index, sn, sk, K, PK)
                    mean, inverse = _centred_length(row_ptr, valid, D, W)
                    square_sum += tl.where(inverse == 0, 0.0, 1.0)
                    for tile in range(H):
                        z = _by_sample(_centred(row_ptr, valid, mean, tile, D, W) * inverse[:, None], PK)
                        total = tl.sum(z, 1)
                        far_squares += tl.sum(tl.sum(total * total, 1), 0)
                        column = tile * W + tl.arange(0, W)
                        own = (embedding < K)[:, None] & (column < D)[None, :]
                        sum_ptr = slot_ptr + (embedding * D)[:, None] + column[None, :]
                        tl.store(sum_ptr, tl.load(sum_ptr, mask=own) + tl.sum(z, 0), mask=own)
        tl.store(slot_ptr + 2 * K * D + K + embedding, tl.sum(_by_sample(square_sum, PK), 0), mask=embedding < K)
        step = run_end
    tl.store(sums_ptr + program, tl.sum(tl.sum(pairs, 1), 0) + far_squares)
