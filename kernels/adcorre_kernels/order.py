"""Device code: the samples in the order of their classes, cut into steps of one class each.

A step is BS samples. An order lies in int32 scratch as `order` (BS entries a step, -1 where a class's last step has
fewer), `run_class` (its class, one entry a step), and `run_end` (one entry a class: the step after its last); behind
these `count` (samples, one entry a class) and `bad` (whether a label was bad). LOCAL: every program makes the order of
its own chunk of samples, in scratch of its own: no atomics, no second launch. Else one order, made on the host's side,
serves all programs, and each takes `chunk` steps of it.
"""

import triton
import triton.language as tl

from adcorre_kernels.rows import labels_of


@triton.jit
def parts(scratch_ptr, C, capacity, BS: tl.constexpr):
    """Pointers to order, run_class, run_end, count and bad, for an order of `capacity` steps."""
    run_class_ptr = scratch_ptr + capacity * BS
    run_end_ptr = run_class_ptr + capacity
    return scratch_ptr, run_class_ptr, run_end_ptr, run_end_ptr + C, run_end_ptr + 2 * C


@triton.jit
def region(C, capacity, BS: tl.constexpr, LOCAL: tl.constexpr):
    """Entries of scratch from one program's order to the next one's."""
    size = (capacity * (BS + 1) + 2 * C + 1).to(tl.int64)
    return size if LOCAL else size * 0


@triton.jit
def open_order(
    targets_ptr,
    scratch_ptr,
    program,
    chunk_index,
    group,
    groups,
    n,
    chunk,
    ignore_index,
    C,
    capacity,
    BC: tl.constexpr,
    BL: tl.constexpr,
    BS: tl.constexpr,
    LOCAL: tl.constexpr,
):
    """order, run_class and run_end for this program, and its steps [first, last).

    LOCAL: those of chunk `chunk_index` with classes of group `group` out of `groups`.
    """
    scratch_ptr += region(C, capacity, BS, LOCAL) * program
    order_ptr, run_class_ptr, run_end_ptr, count_ptr, bad_ptr = parts(scratch_ptr, C, capacity, BS)
    if LOCAL:
        low = chunk_index * chunk
        width = tl.cdiv(C, groups)
        first_class = group * width
        last_class = tl.minimum(first_class + width, C)
        first = 0
        last = _sort(
            targets_ptr, scratch_ptr, low, tl.minimum(low + chunk, n), first_class, last_class, ignore_index, C,
            capacity, BC, BL, BS,
        )  # fmt: skip
    else:
        first = chunk_index * chunk
        last = tl.minimum(first + chunk, tl.load(run_end_ptr + C - 1))
    return order_ptr, run_class_ptr, run_end_ptr, first, last


@triton.jit
def _sort(
    targets_ptr,
    scratch_ptr,
    low,
    high,
    first_class,
    last_class,
    ignore_index,
    C,
    capacity,
    BC: tl.constexpr,
    BL: tl.constexpr,
    BS: tl.constexpr,
):
    """Stable counting sort of samples [low, high) with labels in [first_class, last_class): the number of steps."""
    order_ptr, run_class_ptr, run_end_ptr, count_ptr, bad_ptr = parts(scratch_ptr, C, capacity, BS)
    classes = tl.arange(0, BC)
    lanes = tl.arange(0, BL)
    own = (classes >= first_class) & (classes < last_class)
    count = tl.zeros((BC,), tl.int32)
    bad = tl.zeros((BL,), tl.int32)
    for start in range(low, high, BL):
        index = start + lanes
        label, is_bad = labels_of(targets_ptr, index, index < high, ignore_index, C)
        count += tl.sum((label[:, None] == classes[None, :]).to(tl.int32), 0)
        bad = tl.maximum(bad, is_bad.to(tl.int32))
    count = tl.where(own, count, 0)
    steps = (count + (BS - 1)) // BS
    end = tl.cumsum(steps, 0)
    tl.store(run_end_ptr + classes, end, mask=own)
    tl.store(count_ptr + classes, count, mask=own)
    tl.store(bad_ptr, tl.max(bad, 0))

    position = (end - steps) * BS
    fill = (position + count)[:, None] + tl.arange(0, BS)[None, :]
    tl.store(order_ptr + fill, -1, mask=fill < (end * BS)[:, None])
    for start in range(low, high, BL):
        index = start + lanes
        label, _ = labels_of(targets_ptr, index, index < high, ignore_index, C)
        label = tl.where((label >= first_class) & (label < last_class), label, -1)
        member = (label[:, None] == classes[None, :]).to(tl.int32)
        rank = tl.cumsum(member, 0) - member
        place = tl.sum(member * (rank + position[None, :]), 1)
        tl.store(order_ptr + place, index, mask=label >= 0)
        tl.store(run_class_ptr + place // BS, label, mask=(label >= 0) & (place % BS == 0))
        position += tl.sum(member, 0)
    tl.debug_barrier()  # the whole program reads what single threads wrote
    return tl.sum(steps, 0)
