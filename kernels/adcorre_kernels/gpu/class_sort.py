"""Device code: a counting sort of the samples by class, cut into steps of one class each.

A step is BS samples: BS entries of `order`, padded with -1 in a class's last step. There are two kinds, in int32
scratch memory:

LOCAL, for few samples: each program sorts the samples of one class in its chunk into its own buffer: `order`, then the
class's count, then whether a label of the chunk is bad. This needs no extra launch.

Otherwise one order of all samples is shared by all programs, and each processes `chunk` steps of it: `order`;
`run_class`, the class of each step; `run_end`, for each class the step after its last; `count`, samples of each class;
`bad`. It is computed by two launches for up to 32 classes, `count_labels` and `place_samples`, and by `torch.sort` for
more. There are no atomics, so that the result is deterministic.
"""

import triton
import triton.language as tl

from adcorre_kernels.gpu.rows import DO_NOT_SPECIALIZE, labels_of


@triton.jit
def sort_buffers(scratch_ptr, C, capacity, BS: tl.constexpr):
    """Pointers to order, run_class, run_end, count and bad, for one order of `capacity` steps."""
    run_class_ptr = scratch_ptr + tl.cast(capacity, tl.int64) * BS
    run_end_ptr = run_class_ptr + capacity
    return scratch_ptr, run_class_ptr, run_end_ptr, run_end_ptr + C, run_end_ptr + 2 * C


@triton.jit
def program_buffers(scratch_ptr, program, capacity, BS: tl.constexpr):
    """Pointers to order and count (then bad) of a program's own order."""
    order_ptr = scratch_ptr + tl.cast(program, tl.int64) * (capacity * BS + 2)
    return order_ptr, order_ptr + capacity * BS


@triton.jit
def sort_class(
    targets_ptr, scratch_ptr, program, low, high, c, ignore_index, C, capacity, BL: tl.constexpr, BS: tl.constexpr
):
    """List the samples of class c in [low, high). Returns a pointer to the list, and its number of steps."""
    order_ptr, count_ptr = program_buffers(scratch_ptr, program, capacity, BS)
    lanes = tl.arange(0, BL)
    count = 0
    bad = tl.zeros((BL,), tl.int32)
    for start in range(low, high, BL):
        index = start + lanes
        label, is_bad = labels_of(targets_ptr, index, index < high, ignore_index, C)
        member = (label == c).to(tl.int32)
        tl.store(order_ptr + count + tl.cumsum(member, 0) - member, index, mask=member != 0)
        count += tl.sum(member, 0)
        bad = tl.maximum(bad, is_bad.to(tl.int32))
    steps = tl.cdiv(count, BS)
    rest = count + tl.arange(0, BS)
    tl.store(order_ptr + rest, -1, mask=rest < steps * BS)
    tl.store(count_ptr, count)
    tl.store(count_ptr + 1, tl.max(bad, 0))
    tl.debug_barrier()  # all threads read what single threads wrote
    return order_ptr, steps


@triton.jit(do_not_specialize=[*DO_NOT_SPECIALIZE, "share"])
def count_labels(
    targets_ptr, scratch_ptr, n, share, ignore_index, C, capacity, BC: tl.constexpr, BL: tl.constexpr, BS: tl.constexpr
):
    """After the order, write one row per program: its samples of each class (C,), and whether a label is bad."""
    classes = tl.arange(0, BC)
    lanes = tl.arange(0, BL)
    low = tl.program_id(0) * share
    count = tl.zeros((BC,), tl.int32)
    bad = tl.zeros((BL,), tl.int32)
    for start in range(low, tl.minimum(low + share, n), BL):
        index = start + lanes
        label, is_bad = labels_of(targets_ptr, index, index < n, ignore_index, C)
        count += tl.sum((label[:, None] == classes[None, :]).to(tl.int32), 0)
        bad = tl.maximum(bad, is_bad.to(tl.int32))
    _, _, _, _, bad_ptr = sort_buffers(scratch_ptr, C, capacity, BS)
    row = bad_ptr + 1 + tl.program_id(0) * (C + 1)
    tl.store(row + classes, count, mask=classes < C)
    tl.store(row + C, tl.max(bad, 0))


@triton.jit(do_not_specialize=[*DO_NOT_SPECIALIZE, "share"])
def place_samples(
    targets_ptr,
    scratch_ptr,
    n,
    share,
    ignore_index,
    C,
    capacity,
    BC: tl.constexpr,
    BL: tl.constexpr,
    BS: tl.constexpr,
    BP: tl.constexpr,
):
    """Scatter the program's samples to their sorted positions; program 0 also writes the class tables."""
    program = tl.program_id(0)
    classes = tl.arange(0, BC)
    lanes = tl.arange(0, BL)
    order_ptr, run_class_ptr, run_end_ptr, count_ptr, bad_ptr = sort_buffers(scratch_ptr, C, capacity, BS)
    other = tl.arange(0, BP)
    row = bad_ptr + 1 + other * (C + 1)
    valid = other < tl.num_programs(0)
    counts = tl.load(row[:, None] + classes[None, :], mask=valid[:, None] & (classes < C)[None, :], other=0)
    count = tl.sum(counts, 0)
    before = tl.sum(tl.where((other < program)[:, None], counts, 0), 0)
    steps = tl.cdiv(count, BS)
    end = tl.cumsum(steps, 0)
    begin = (end - steps) * BS
    if program == 0:
        tl.store(run_end_ptr + classes, end, mask=classes < C)
        tl.store(count_ptr + classes, count, mask=classes < C)
        tl.store(bad_ptr, tl.max(tl.load(row + C, mask=valid, other=0), 0))
        rest = (begin + count)[:, None] + tl.arange(0, BS)[None, :]
        tl.store(order_ptr + rest, -1, mask=rest < (end * BS)[:, None])
    position = begin + before
    low = program * share
    for start in range(low, tl.minimum(low + share, n), BL):
        index = start + lanes
        label, _ = labels_of(targets_ptr, index, index < n, ignore_index, C)
        member = (label[:, None] == classes[None, :]).to(tl.int32)
        rank = tl.cumsum(member, 0) - member
        place = tl.sum(member * (rank + position[None, :]), 1)
        tl.store(order_ptr + place, index, mask=label >= 0)
        tl.store(run_class_ptr + place // BS, label, mask=(label >= 0) & (place % BS == 0))
        position += tl.sum(member, 0)
