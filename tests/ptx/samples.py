"""Small Triton kernels, one for each thing that the machine must be able to run."""

import triton
import triton.language as tl


@triton.jit
def add(x, y, out, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(out + i, tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n), mask=i < n)


@triton.jit
def rows(x, out, d, B: tl.constexpr):
    """Softmax over |x| and arg max of each row, and a transcendental or two."""
    row, i = tl.program_id(0), tl.arange(0, B)
    v = tl.load(x + row * d + i, mask=i < d, other=0.0).to(tl.float32)
    peak = tl.max(tl.where(i < d, v, float("-inf")), 0)
    e = tl.where(i < d, tl.exp(v - peak), 0.0)
    total = tl.sum(e, 0)
    value = e / total * tl.rsqrt(tl.sum(v * v, 0) + 1e-6) + tl.log(total) + tl.sqrt(peak * peak) + tl.argmax(v, 0)
    tl.store(out + row * d + i, value.to(out.dtype.element_ty), mask=i < d)


@triton.jit
def approximations(x, out, n, B: tl.constexpr):
    """Instructions that hardware approximates, one row of `out` each."""
    i = tl.program_id(0) * B + tl.arange(0, B)
    v = tl.load(x + i, mask=i < n)
    tl.store(out + i, tl.rsqrt(v), mask=i < n)
    tl.store(out + n + i, tl.sqrt(v), mask=i < n)
    tl.store(out + 2 * n + i, tl.sqrt_rn(v), mask=i < n)
    tl.store(out + 3 * n + i, 1.0 / v, mask=i < n)
    tl.store(out + 4 * n + i, 3.0 / v, mask=i < n)
    tl.store(out + 5 * n + i, tl.exp2(v), mask=i < n)
    tl.store(out + 6 * n + i, tl.log2(v), mask=i < n)
    tl.store(out + 7 * n + i, tl.div_rn(1.0, v), mask=i < n)


@triton.jit
def dot(a, b, c, K, M: tl.constexpr, N: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr):
    i, j, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, BK)
    total = tl.zeros((M, N), tl.float32)
    for s in tl.range(0, K, BK, num_stages=STAGES):
        left = tl.load(a + i[:, None] * K + s + k[None, :], mask=(s + k < K)[None, :], other=0.0)
        right = tl.load(b + (s + k)[:, None] * N + j[None, :], mask=(s + k < K)[:, None], other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    tl.store(c + i[:, None] * N + j[None, :], total)


@triton.jit
def pipelined(x, out, n, d, B: tl.constexpr, STAGES: tl.constexpr):
    """Sums of columns; cp.async from sm_80 on."""
    i = tl.arange(0, B)
    total = tl.zeros((B,), tl.float32)
    for row in tl.range(0, n, num_stages=STAGES):
        total += tl.load(x + row * d + i, mask=i < d, other=0.0).to(tl.float32)
    tl.store(out + i, total, mask=i < d)


@triton.jit
def last_one_sums(x, partial, counter, out, n, B: tl.constexpr, P: tl.constexpr, SEM: tl.constexpr):
    """The last program adds up all partial results: correct only if the counter synchronizes."""
    program, i = tl.program_id(0), tl.arange(0, B)
    v = tl.load(x + program * B + i, mask=program * B + i < n, other=0.0)
    tl.store(partial + program, tl.sum(v, 0))
    tl.debug_barrier()
    if tl.atomic_add(counter, 1, sem=SEM) == tl.num_programs(0) - 1:
        p = tl.arange(0, P)
        tl.store(out, tl.sum(tl.load(partial + p, mask=p < tl.num_programs(0), other=0.0), 0))


@triton.jit
def atomics(x, out, n, B: tl.constexpr):
    """A histogram by atomics, min and max, an exchange and a compare-and-swap, all relaxed."""
    i = tl.program_id(0) * B + tl.arange(0, B)
    v = tl.load(x + i, mask=i < n, other=0)
    tl.atomic_add(out + v, 1, mask=i < n, sem="relaxed")
    tl.atomic_max(out + 8, tl.max(v, 0), sem="relaxed")
    tl.atomic_min(out + 9, tl.program_id(0), sem="relaxed")
    tl.atomic_cas(out + 10, 0, 7, sem="relaxed")
    tl.atomic_xchg(out + 11, 5, sem="relaxed")


@triton.jit
def scans(x, total, ordered, gathered, counts, B: tl.constexpr):
    i = tl.arange(0, B)
    v = tl.load(x + i)
    tl.store(total + i, tl.cumsum(v, 0))
    tl.store(ordered + i, tl.sort(v))
    tl.store(gathered + i, tl.gather(v, (i * 7) % B, 0))
    tl.store(counts + tl.arange(0, 8), tl.histogram(v.to(tl.int32) & 7, 8))


@triton.jit
def walk(x, out, n, B: tl.constexpr):
    """A while loop with a data-dependent number of iterations, a branch and integer divisions."""
    i, total = tl.load(x + tl.program_id(0)), 0
    while i < n:
        step = tl.load(x + i)
        total += tl.sum(tl.load(x + (tl.arange(0, B) + i) % n), 0)
        i += step
        if total > 100:
            total = total // 3
    tl.store(out + tl.program_id(0), total)


@triton.jit
def transposed(x, out, sums, M: tl.constexpr, N: tl.constexpr):
    i, j = tl.arange(0, M), tl.arange(0, N)
    v = tl.load(x + i[:, None] * N + j[None, :])
    tl.store(out + j[:, None] * M + i[None, :], tl.trans(v))
    tl.store(sums + i[:, None] * N + j[None, :], tl.cumsum(v.to(tl.float32), 0))


@triton.jit
def through_memory(x, scratch, out, B: tl.constexpr, BARRIER: tl.constexpr):
    """A program reads what other threads of it wrote."""
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(scratch + i, tl.load(x + i) * 2)
    if BARRIER:
        tl.debug_barrier()
    back = tl.program_id(0) * B + (B - 1 - tl.arange(0, B))
    tl.store(out + i, tl.load(scratch + back))


@triton.jit
def gather(x, index, out, n, d, B: tl.constexpr):
    row, i = tl.load(index + tl.program_id(0)), tl.arange(0, B)
    tl.store(out + tl.program_id(0) * d + i, tl.load(x + row * d + i, mask=i < d), mask=i < d)


@triton.jit
def hinted(x, out, start, B: tl.constexpr):
    """Says that `start` is a multiple of 4."""
    i = tl.max_contiguous(tl.multiple_of(start + tl.arange(0, B), 4), 4)
    tl.store(out + i, tl.load(x + i))


@triton.jit
def neighbours(x, out, B: tl.constexpr, OVERLAP: tl.constexpr):
    """OVERLAP: the last element of a program is the first of the next one."""
    i = tl.program_id(0) * (B - OVERLAP) + tl.arange(0, B)
    tl.store(out + i, tl.load(x + i) + tl.program_id(0))


@triton.jit
def uneven_dots(a, b, c, trips, M: tl.constexpr):
    """`trips` products per program: programs diverge, and whole warps wait."""
    program, i = tl.program_id(0), tl.arange(0, M)
    at = i[:, None] * M + i[None, :]
    total = tl.zeros((M, M), tl.float32)
    for step in range(tl.load(trips + program)):
        total = tl.dot(tl.load(a + step * M * M + at), tl.load(b + step * M * M + at), total)
    tl.store(c + program * M * M + at, total)
