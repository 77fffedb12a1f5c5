"""Adds the programs' slots, in the order of the programs: the result is deterministic."""

import triton
import triton.language as tl

from adcorre_kernels.gpu.attention import attention_step
from adcorre_kernels.gpu.class_sort import program_buffers, sort_buffers


@triton.jit
def _reduce_class(
    sums_ptr,
    scratch_ptr,
    flat_ptr,
    programs,
    embeddings,
    chunk,
    C,
    capacity,
    offset,
    K: tl.constexpr,
    D: tl.constexpr,
    SLOT: tl.constexpr,
    BS: tl.constexpr,
    BP: tl.constexpr,
    BJ: tl.constexpr,
    BK: tl.constexpr,
    ROWS: tl.constexpr,
    LOCAL: tl.constexpr,
):
    """`ClassStatistics.flat` of class `program_id(0)`, entries [BJ b, BJ (b + 1)) of a slot."""
    c = tl.program_id(0)
    b = tl.program_id(1)
    entry = b * BJ + tl.arange(0, BJ)
    inside = entry < 2 * K * D + K
    row = tl.arange(0, BK)
    if LOCAL:
        first = 0
        last = programs
    else:
        _, _, run_end_ptr, count_ptr, bad_ptr = sort_buffers(scratch_ptr, C, capacity, BS)
        begin = tl.load(run_end_ptr + c - 1, mask=c > 0, other=0)
        end = tl.load(run_end_ptr + c)
        first = begin // chunk
        last = tl.where(end > begin, (end - 1) // chunk + 1, first)
    total = tl.zeros((BP, BJ), tl.float32)
    squares = tl.zeros((BP, BK), tl.float32)
    samples = tl.zeros((BP,), tl.int32)
    bad = tl.zeros((BP,), tl.int32)
    for start in range(first * ROWS, last * ROWS, BP):
        slot_row = start + tl.arange(0, BP)
        p = slot_row // ROWS
        used = p < last
        if LOCAL:
            _, count_ptr = program_buffers(scratch_ptr, p * C + c, capacity, BS)
            count = tl.load(count_ptr, mask=used, other=0)
            samples += tl.where(slot_row % ROWS == 0, count, 0)
            bad += tl.load(count_ptr + 1, mask=used, other=0)
            used = count > 0
        slot = (p.to(tl.int64) * (C if LOCAL else 1) + c) * ROWS + slot_row % ROWS
        slot = sums_ptr + offset + slot[:, None] * SLOT
        padded = used[:, None] & (entry < SLOT)[None, :]  # with this mask lanes load whole vectors
        total += tl.load(slot + entry[None, :], mask=padded, other=0.0)
        if b == 0:
            squares += tl.load(
                slot + (2 * K * D + K) + row[None, :], mask=used[:, None] & (row < K)[None, :], other=0.0
            )
    size = C.to(tl.int64) * (K * D)
    place = c.to(tl.int64) * (K * D) + tl.where(entry < K * D, entry, size + entry - K * D)
    place = tl.where(entry < 2 * K * D, place, 2 * size + c * K + entry - 2 * K * D)
    tl.store(flat_ptr + place, tl.sum(total, 0), mask=inside)
    if b == 0:
        rest = flat_ptr + 2 * size + C * K
        tl.store(rest + c, tl.sum(tl.sum(squares, 1), 0))
        if LOCAL:
            count = tl.sum(samples, 0)
            any_bad = tl.sum(bad, 0)
        else:
            count = tl.load(count_ptr + c)
            any_bad = tl.load(bad_ptr)
        tl.store(rest + C + c, tl.where(any_bad > 0, float("nan"), count.to(tl.float32)))
        if c == 0:
            lane = tl.arange(0, 128)
            embedding = tl.zeros((128,), tl.float32)
            for start in range(0, embeddings, 128):
                embedding += tl.load(sums_ptr + start + lane, mask=start + lane < embeddings, other=0.0)
            tl.store(rest + 2 * C, tl.sum(embedding, 0))


@triton.jit(do_not_specialize=["programs", "embeddings", "chunk", "C", "capacity", "logits_programs"])
def reduce_slots(
    sums_ptr,
    scratch_ptr,
    flat_ptr,
    programs,
    embeddings,
    chunk,
    C,
    capacity,
    offset,
    flat_offset,
    partials_ptr,
    counts_ptr,
    position_ptr,
    values_ptr,
    logits_programs,
    window,
    K: tl.constexpr,
    D: tl.constexpr,
    SLOT: tl.constexpr,
    BS: tl.constexpr,
    BP: tl.constexpr,
    BJ: tl.constexpr,
    BK: tl.constexpr,
    ROWS: tl.constexpr,
    LOCAL: tl.constexpr,
    BC: tl.constexpr,
    BL: tl.constexpr,
    COUNT: tl.constexpr,
    RECORD: tl.constexpr,
):
    """`ClassStatistics.flat`: programs (c, b) add the slots of class c. With `partials`, program (C, 0) does the step
    of the attention map. The result is written to `flat` from element `flat_offset` on."""
    if tl.program_id(0) < C:
        _reduce_class(
            sums_ptr, scratch_ptr, flat_ptr + flat_offset, programs, embeddings, chunk, C, capacity, offset,
            K, D, SLOT, BS, BP, BJ, BK, ROWS, LOCAL,
        )  # fmt: skip
    elif partials_ptr is not None:  # noqa: SIM102
        if tl.program_id(1) == 0:
            attention_step(
                partials_ptr, counts_ptr, position_ptr, values_ptr, logits_programs, window, C, BC, BL, COUNT, RECORD
            )
