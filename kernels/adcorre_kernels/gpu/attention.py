"""Device code: one step of the Adaptive Attention Map (Eqs. 7 and 8), from the sums of the programs over the logits.

It writes into `values`, which hold fd, md, ed, nfd and ce; w (C,); for each class this step's samples predicted right
(C,) and samples (C,); the sums of cross-entropies and of weights.
"""

import triton
import triton.language as tl

from adcorre_kernels.gpu.logits import add_partials

CE = tl.constexpr(4)
ATTENTION = tl.constexpr(5)  # offset of w in `values`
CE_SUMS = tl.constexpr(3)  # the sums are at ATTENTION + CE_SUMS C


@triton.jit
def attention_step(
    partials_ptr,
    counts_ptr,
    position_ptr,
    values_ptr,
    programs,
    window,
    C,
    BC: tl.constexpr,
    BP: tl.constexpr,
    COUNT: tl.constexpr,
    RECORD: tl.constexpr,
):
    """By one program. `counts` (window, 2, C) and `position` (1,) are the map's; without them only sums are written.

    COUNT: w uses this step's counts instead of those at `position`. RECORD: the map stores them.
    """
    column = tl.arange(0, BC)
    inside = column < C
    dtype = values_ptr.dtype.element_ty
    if counts_ptr is not None:
        position = tl.load(position_ptr)
    correct, seen, loss, divisor = add_partials(partials_ptr, programs, C, BC, BP)
    tl.store(values_ptr + ATTENTION + C + column, correct.to(dtype), mask=inside)
    tl.store(values_ptr + ATTENTION + 2 * C + column, seen.to(dtype), mask=inside)
    tl.store(values_ptr + ATTENTION + CE_SUMS * C, loss.to(dtype))
    tl.store(values_ptr + ATTENTION + CE_SUMS * C + 1, divisor.to(dtype))
    if counts_ptr is not None:
        all_correct = tl.zeros((BC,), tl.int64)
        all_seen = tl.zeros((BC,), tl.int64)
        if COUNT:
            all_correct += correct.to(tl.int64)
            all_seen += seen.to(tl.int64)
        for step in range(window):
            row = counts_ptr + step * 2 * C + column
            included = inside
            if COUNT:
                included = column < tl.where(step == position, 0, C)
            all_correct += tl.load(row, mask=included, other=0)
            all_seen += tl.load(row + C, mask=included, other=0)
        share = all_correct.to(tl.float64) / tl.maximum(all_seen, 1).to(tl.float64)
        w = 1.0 - share + tl.full((), 1e-6, tl.float64)
        tl.store(values_ptr + ATTENTION + column, w.to(dtype), mask=inside)
        if RECORD:
            tl.debug_barrier()  # all threads have read the position
            row = counts_ptr + position * 2 * C + column
            tl.store(row, correct.to(tl.int64), mask=inside)
            tl.store(row + C, seen.to(tl.int64), mask=inside)
            tl.store(position_ptr, (position + 1) % window)
