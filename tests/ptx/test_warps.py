"""Interactions of lanes, warps and blocks, in hand-written PTX."""

import numpy as np
import pytest

from ptx_machine import Report
from ptx_machine.exchange import _as_hardware_sums
from tests.ptx.assembly import lanewise, run

AT = "mul.wide.u32 %rd50, %r100, 4;\nadd.s64 %rd60, %rd100, %rd50;\nadd.s64 %rd61, %rd101, %rd50;\n"
SHARED = "mov.b32 %r1, global_smem;\nshl.b32 %r2, %r100, 2;\nadd.s32 %r3, %r1, %r2;\n"  # %r3: the thread's word


def kinds(report: Report) -> set[str]:
    return {finding.kind for finding in report.findings}


def shuffled(mode: str, x: list[int], b: int, c: int) -> list[int]:
    """PTX ISA 9.7.9.6, lane by lane."""
    out = []
    for lane in range(32):
        segment, clamp = c >> 8 & 31, c & 31
        highest = (lane & segment) | (clamp & ~segment & 31)
        lowest = lane & segment
        source = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": lowest | (b & ~segment & 31)}[mode]
        valid = source >= highest if mode == "up" else source <= highest
        out.append(x[source] if valid else x[lane])
    return out


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("by", [0, 1, 5, 16, 31])
@pytest.mark.parametrize("segment", [0, 0b10000, 0b11100])
def test_shuffle(mode: str, by: int, segment: int) -> None:
    x = np.arange(100, 132, dtype=np.uint32)
    c = segment << 8 | (0 if mode == "up" else 31)
    got = lanewise(f"shfl.sync.{mode}.b32 $0, $1, {by}, {c}, -1", [x], np.uint32)
    assert got.tolist() == shuffled(mode, x.tolist(), by, c)


def test_votes_and_reductions() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(64) < 0.3
    got = lanewise("vote.sync.ballot.b32 $0, $1, -1", [p], np.uint32)
    assert got.tolist() == [
        sum(int(bit) << i for i, bit in enumerate(p[w : w + 32])) for w in (0, 32) for _ in range(32)
    ]
    x = rng.integers(-1000, 1000, 64).astype(np.int32)
    bitwise = {"and": np.bitwise_and.reduce, "or": np.bitwise_or.reduce, "xor": np.bitwise_xor.reduce}
    for name, fn in {"add": sum, "min": min, "max": max, **bitwise}.items():
        kind, view = ("b32", np.uint32) if name in bitwise else ("s32", np.int32)
        got = lanewise(f"redux.sync.{name}.{kind} $0, $1, -1", [x.view(view)], view)
        assert got.tolist() == [int(fn(x.view(view)[w : w + 32].tolist())) for w in (0, 32) for _ in range(32)]


@pytest.mark.parametrize("negated", ["", "!"])
def test_votes_on_a_predicate(negated: str) -> None:
    for row in (np.zeros(32, bool), np.ones(32, bool), np.arange(32) == 7):
        values = ~row if negated else row
        expected = {"any": values.any(), "all": values.all(), "uni": values.all() or not values.any()}
        for name, want in expected.items():
            got = lanewise(f"vote.sync.{name}.pred $0, {negated}$1, -1", [row], np.bool_)
            assert got.tolist() == [bool(want)] * 32


@pytest.mark.parametrize("kind, k", [("bf16", 16), ("bf16", 8), ("f16", 16), ("tf32", 8), ("tf32", 4), ("s8", 32)])
def test_matrices(kind: str, k: int) -> None:
    """Fragments laid out lane by lane as in the ISA's figures; small integers, so the result is exact."""
    rng = np.random.default_rng(1)
    a, b = rng.integers(-4, 5, (16, k)), rng.integers(-4, 5, (k, 8))
    c = rng.integers(-9, 10, (16, 8))
    per = {"bf16": 2, "f16": 2, "tf32": 1, "s8": 4}[kind]

    def bits(numbers: list[int]) -> int:
        if kind == "tf32":
            return int(np.float32(numbers[0]).view(np.uint32))
        if kind == "s8":
            return int.from_bytes(np.array(numbers, np.int8).tobytes(), "little")
        halves = [
            int(np.float32(x).view(np.uint32)) >> 16 if kind == "bf16" else int(np.float16(x).view(np.uint16))
            for x in numbers
        ]
        return halves[0] | halves[1] << 16

    def register(lane: int, r: int, left: bool) -> int:
        group, thread = divmod(lane, 4)
        along = [thread * per + e + 4 * per * (r // 2 if left else r) for e in range(per)]
        row = group + 8 * (r % 2)
        return bits([int(a[row, i]) if left else int(b[i, group]) for i in along])

    na, nb = 16 * k // 32 // per, 8 * k // 32 // per
    result, view = ("s32", np.int32) if kind == "s8" else ("f32", np.float32)
    place = [(lane // 4 + 8 * (r // 2), lane % 4 * 2 + r % 2) for lane in range(32) for r in range(4)]
    memory = np.zeros((32, 4 + na + nb), np.uint32)
    for lane in range(32):
        memory[lane] = (
            [int(np.array(c[place[4 * lane + r]], view).view(np.uint32)) for r in range(4)]
            + [register(lane, r, True) for r in range(na)]
            + [register(lane, r, False) for r in range(nb)]
        )
    out = np.zeros((32, 4), np.uint32)
    width = 4 * memory.shape[1]
    body = f"mul.wide.u32 %rd50, %r100, {width};\nadd.s64 %rd60, %rd101, %rd50;\n"
    body += "mul.wide.u32 %rd51, %r100, 16;\nadd.s64 %rd61, %rd100, %rd51;\n"
    body += "".join(f"ld.global.b32 %r{i}, [%rd60+{4 * i}];\n" for i in range(memory.shape[1]))
    names = [f"%r{i}" for i in range(memory.shape[1])]
    groups = [["%r90", "%r91", "%r92", "%r93"], names[4 : 4 + na], names[4 + na :], names[:4]]
    operands = ", ".join("{" + ", ".join(group) + "}" for group in groups)
    body += f"mma.sync.aligned.m16n8k{k}.row.col.{result}.{kind}.{kind}.{result} {operands};\n"
    body += "st.global.v4.b32 [%rd61], {%r90, %r91, %r92, %r93};\n"
    run(body, out, memory).raise_if_any()
    want = a @ b + c
    assert out.view(view).reshape(-1).tolist() == [want[p] for p in place]


@pytest.mark.parametrize("size, sum_of_all", [(2.0**-24, 1 + 2.0**-20), (2.0**-26, 1.0)])
def test_sums_of_products_are_cut(size: float, sum_of_all: float) -> None:
    """Sixteen products added to 1: down to 25 bits below it all count, below that none; nothing rounds up."""
    left, right = np.full((1, 16, 16), size), np.ones((1, 16, 8))
    for sign in (1, -1):
        assert (_as_hardware_sums(np.full((1, 16, 8), 1.0 * sign), sign * left, right) == sign * sum_of_all).all()
    assert (_as_hardware_sums(np.zeros((1, 16, 8)), left, right) == 16 * size).all()
    halves = np.full((1, 16, 16), 0.75 * 2.0**-23) * (np.arange(16) < 1)
    assert (_as_hardware_sums(np.full((1, 16, 8), 1.0), halves, right) == 1).all()


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_ldmatrix(trans: str) -> None:
    x = np.arange(4 * 64, dtype=np.uint16).reshape(4, 8, 8)
    out = np.zeros((32, 4), np.uint32)
    body = "mul.wide.u32 %rd50, %r100, 16;\nadd.s64 %rd60, %rd101, %rd50;\nadd.s64 %rd61, %rd100, %rd50;\n"
    body += "mov.b32 %r1, global_smem;\nshl.b32 %r2, %r100, 4;\nadd.s32 %r3, %r1, %r2;\n"
    body += "ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%rd60];\nst.shared.v4.b32 [%r3], {%r4, %r5, %r6, %r7};\n"
    body += f"bar.sync 0;\nldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r4, %r5, %r6, %r7}}, [%r3];\n"
    body += "st.global.v4.b32 [%rd61], {%r4, %r5, %r6, %r7};\n"
    run(body, out, x, shared=512).raise_if_any()
    source = x.transpose(0, 2, 1) if trans else x
    for lane in range(32):
        for matrix in range(4):
            row, column = divmod(2 * lane, 8)
            low, high = source[matrix, row, column], source[matrix, row, column + 1]
            assert out[lane, matrix] == int(low) | int(high) << 16


@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_stmatrix(count: int, trans: str) -> None:
    """A lane's registers hold two neighbours of a row of each matrix; the lanes of matrix i name its rows."""
    x = np.arange(32 * count, dtype=np.uint32).reshape(32, count) * 0x10003
    out = np.zeros((8 * count, 8), np.uint16)
    names = ", ".join(f"%r{10 + i}" for i in range(count))
    body = f"mul.wide.u32 %rd50, %r100, {4 * count};\nadd.s64 %rd60, %rd101, %rd50;\n"
    body += "".join(f"ld.global.b32 %r{10 + i}, [%rd60+{4 * i}];\n" for i in range(count))
    body += "mov.b32 %r1, global_smem;\nshl.b32 %r2, %r100, 4;\nadd.s32 %r3, %r1, %r2;\n"
    body += f"stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r3], {{{names}}};\n"
    body += f"setp.lt.u32 %p1, %r100, {8 * count};\n@%p1 ld.shared.v4.b32 {{%r4, %r5, %r6, %r7}}, [%r3];\n"
    body += "mul.wide.u32 %rd51, %r100, 16;\nadd.s64 %rd61, %rd100, %rd51;\n"
    body += "@%p1 st.global.v4.b32 [%rd61], {%r4, %r5, %r6, %r7};\n"
    run(body, out, x, shared=128 * count).raise_if_any()
    want = x.T.copy().view(np.uint16).reshape(count, 8, 8)
    assert (out.reshape(count, 8, 8) == (want.transpose(0, 2, 1) if trans else want)).all()


@pytest.mark.parametrize("by, expected", [("%r1, 0", set()), ("%r1, %r100", {"race"})])
def test_two_warps_store_one_matrix(by: str, expected: set[str]) -> None:
    """Both store the same bits: no race. Different bits: a race."""
    body = f"mov.b32 %r1, 17;\nadd.s32 %r2, {by};\nmov.b32 %r3, global_smem;\nand.b32 %r4, %r100, 7;\n"
    body += "shl.b32 %r4, %r4, 4;\nadd.s32 %r3, %r3, %r4;\n"
    body += "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r3], {%r2};\n"
    assert kinds(run(body, np.zeros(1, np.uint32), num_warps=2, shared=128)) == expected


@pytest.mark.parametrize("warps, blocks, expected", [(2, 1, set()), (1, 2, {"race"})])
def test_equal_bits_in_one_place(warps: int, blocks: int, expected: set[str]) -> None:
    """From one block: replicated values. From two blocks: a race, since nothing synchronizes them."""
    body = "mov.b32 %r1, 7;\nst.global.b32 [%rd100], %r1;\n"
    assert kinds(run(body, np.zeros(1, np.uint32), num_warps=warps, blocks=blocks)) == expected


def test_lanes_diverge_and_reconverge() -> None:
    """A loop with as many iterations as the lane's index, then a shuffle over all lanes."""
    out, x = np.zeros(32, np.uint32), np.arange(32, dtype=np.uint32)
    body = AT + "ld.global.b32 %r1, [%rd61];\nmov.b32 %r2, 0;\nLOOP:\nsetp.ge.u32 %p1, %r2, %r1;\n@%p1 bra DONE;\n"
    body += "add.s32 %r2, %r2, 1;\nbra LOOP;\nDONE:\n"
    body += "shfl.sync.bfly.b32 %r3, %r2, 31, 31, -1;\nst.global.b32 [%rd60], %r3;\n"
    report = run(body, out, x)
    report.raise_if_any()
    assert out.tolist() == list(range(31, -1, -1))
    assert list(report.counts[0].loop_trips.values()) == [32]


def test_diverged_lanes_reconverge_at_a_shuffle() -> None:
    out = np.zeros(32, np.uint32)
    body = AT + "mov.u32 %r2, 1;\nsetp.lt.u32 %p1, %r100, 7;\n@%p1 bra SLOW;\nJOIN:\n"
    body += "shfl.sync.bfly.b32 %r3, %r2, 31, 31, -1;\nst.global.b32 [%rd60], %r3;\nbra END;\n"
    body += "SLOW:\nadd.s32 %r2, %r2, %r100;\nbra JOIN;\nEND:\n"
    run(body, out).raise_if_any()
    assert out.tolist() == [1] * 25 + list(range(7, 0, -1))


@pytest.mark.parametrize("what", ["shfl.sync.bfly.b32 %r3, %r100, 1, 31, -1", "bar.sync 0", "bar.warp.sync -1"])
def test_in_divergent_code(what: str) -> None:
    out = np.zeros(32, np.uint32)
    body = f"setp.lt.u32 %p1, %r100, 7;\n@%p1 bra OVER;\n{what};\nOVER:\n"
    assert kinds(run(body, out)) & {"divergence", "deadlock"}


def test_a_barrier_that_one_warp_does_not_reach() -> None:
    body = "setp.lt.u32 %p1, %r100, 32;\n@%p1 bra OVER;\nbar.sync 0;\nOVER:\n"
    assert kinds(run(body, np.zeros(1, np.uint32), num_warps=2)) == {"deadlock"}


def test_barriers_of_a_part_of_the_block() -> None:
    """Named barriers: warps 0 and 1 exchange words; warp 2 does not take part."""
    out = np.zeros(96, np.uint32)
    body = AT.replace("add.s64 %rd61, %rd101, %rd50;\n", "") + SHARED
    body += "setp.ge.u32 %p1, %r100, 64;\n@%p1 bra OVER;\nst.shared.b32 [%r3], %r100;\n"
    body += "bar.sync 1, 64;\nxor.b32 %r4, %r2, 128;\nadd.s32 %r4, %r1, %r4;\nld.shared.b32 %r5, [%r4];\n"
    body += "st.global.b32 [%rd60], %r5;\nOVER:\n"
    run(body, out, num_warps=3, shared=256).raise_if_any()
    assert out[:64].tolist() == [*range(32, 64), *range(32)]


def test_shared_memory_never_written() -> None:
    report = run(SHARED + "ld.shared.b32 %r5, [%r3];\n", np.zeros(1, np.uint32), shared=128)
    assert kinds(report) == {"never written"}


def test_shared_memory_out_of_bounds() -> None:
    assert kinds(run(SHARED + "st.shared.b32 [%r3], %r1;\n", np.zeros(1, np.uint32), shared=124)) == {"out of bounds"}
    assert kinds(run("ld.shared.b32 %r5, [0];\n", np.zeros(1, np.uint32), shared=124)) == {"out of bounds"}


def test_bytes_are_the_unit() -> None:
    """Two warps write different halves of the same words: no race; the same bytes: a race."""
    prologue = "mov.b32 %r1, global_smem;\nand.b32 %r2, %r100, 31;\nshl.b32 %r2, %r2, 2;\nadd.s32 %r3, %r1, %r2;\n"
    prologue += "shr.u32 %r4, %r100, 5;\nshl.b32 %r5, %r4, 1;\nadd.s32 %r6, %r3, %r5;\ncvt.u16.u32 %rs1, %r100;\n"
    for address, expected in (("%r6", set()), ("%r3", {"race"})):
        for seed in range(3):
            report = run(
                prologue + f"st.shared.b16 [{address}], %rs1;\n",
                np.zeros(1, np.uint32),
                num_warps=2,
                shared=128,
                seed=seed,
            )
            assert kinds(report) == expected


def test_the_same_bits_written_by_two_warps() -> None:
    """Replicated layouts do this in one instruction. In two, or over data that were read, it is a race."""
    body = "mov.b32 %r1, global_smem;\nand.b32 %r2, %r100, 31;\nshl.b32 %r2, %r2, 2;\nadd.s32 %r3, %r1, %r2;\n"
    write, read, memory = "st.shared.b32 [%r3], %r2;\n", "ld.shared.b32 %r5, [%r3];\n", np.zeros(1, np.uint32)
    for seed in range(4):
        run(body + write, memory, num_warps=3, shared=128, seed=seed).raise_if_any()
        run(body + write + "bar.sync 0;\n" + read, memory, num_warps=3, shared=128, seed=seed).raise_if_any()
        assert kinds(run(body + write + read, memory, num_warps=3, shared=128, seed=seed)) == {"race"}
    assert kinds(run(body + write + write, memory, num_warps=3, shared=128)) == {"race"}


def test_lanes_that_disagree() -> None:
    body = "mov.b32 %r1, global_smem;\nst.shared.b32 [%r1], %r100;\n"
    assert kinds(run(body, np.zeros(1, np.uint32), shared=4)) == {"lane conflict"}
    run(body.replace("%r100", "%r1"), np.zeros(1, np.uint32), shared=4).raise_if_any()


def test_read_before_a_later_write() -> None:
    """Warp 0 reads what warp 1 overwrites: wrong in either order."""
    body = "mov.b32 %r6, 7;\nsetp.lt.u32 %p1, %r100, 32;\n@%p1 ld.global.b32 %r5, [%rd100];\n"
    body += "@!%p1 st.global.b32 [%rd100], %r6;\n"
    for seed in range(4):
        report = run(body, np.zeros(1, np.uint32), num_warps=2, seed=seed)
        assert "race" in kinds(report)
        finding = report.findings[0]
        assert {finding.warp, finding.other_warp} == {0, 1}


@pytest.mark.parametrize("first, second, expected", [
    ("release", "acquire", set()), ("acq_rel", "acq_rel", set()),
    ("relaxed", "acquire", {"race"}), ("release", "relaxed", {"race"}),
])  # fmt: skip
def test_message_passing(first: str, second: str, expected: set[str]) -> None:
    """Block 0 writes a word and raises a flag; block 1 waits for the flag and reads the word."""
    body = "mov.u32 %r1, %ctaid.x;\nmov.b32 %r7, 1;\nmov.b32 %r8, 0;\nsetp.ne.s32 %p1, %r100, 0;\n@%p1 bra OVER;\n"
    body += "setp.eq.s32 %p2, %r1, 1;\n@%p2 bra WAIT;\nst.global.b32 [%rd100], %r7;\n"
    body += f"atom.global.gpu.{first}.exch.b32 %r3, [%rd100+4], %r7;\nbra OVER;\nWAIT:\n"
    body += f"atom.global.gpu.{second}.add.u32 %r3, [%rd100+4], %r8;\nsetp.eq.s32 %p3, %r3, 0;\n@%p3 bra WAIT;\n"
    body += "ld.global.b32 %r4, [%rd100];\nst.global.b32 [%rd100+8], %r4;\nOVER:\n"
    for seed in range(3):
        memory = np.zeros(3, np.uint32)
        report = run(body, memory, blocks=2, seed=seed)
        assert kinds(report) == expected
        assert memory.tolist() == [1, 1, 1]


def test_a_block_scope_orders_nothing_between_blocks() -> None:
    body = "setp.ne.s32 %p1, %r100, 0;\n@%p1 bra OVER;\nmov.b32 %r7, 1;\nld.global.b32 %r2, [%rd100];\n"
    body += "st.global.b32 [%rd100], %r7;\natom.global.cta.acq_rel.add.u32 %r3, [%rd100+4], %r7;\nOVER:\n"
    assert "race" in kinds(run(body, np.zeros(2, np.uint32), blocks=2))


def test_a_plain_read_of_a_counter() -> None:
    body = "mov.b32 %r7, 1;\nred.global.gpu.relaxed.add.u32 [%rd100], %r7;\nld.global.b32 %r2, [%rd100];\n"
    assert kinds(run(body, np.zeros(1, np.uint32), num_warps=2)) == {"race"}
    strong = body.replace("ld.global.b32", "ld.relaxed.gpu.global.b32")
    run(strong, np.zeros(1, np.uint32), num_warps=2).raise_if_any()


@pytest.mark.parametrize("name, kind, start, operand, want", [
    ("add.u32", np.uint32, 5, 3, 5 + 96), ("max.s32", np.int32, -7, -3, -3), ("min.u32", np.uint32, 9, 4, 4),
    ("and.b32", np.uint32, 0xFF, 0x3C, 0x3C), ("or.b32", np.uint32, 1, 6, 7), ("xor.b32", np.uint32, 5, 3, 5),
    ("exch.b32", np.uint32, 5, 3, 3), ("add.f32", np.float32, 0.5, 0.25, 8.5),
])  # fmt: skip
def test_atomics(name: str, kind: type, start: float, operand: float, want: float) -> None:
    memory = np.array([start, operand], kind)
    run(f"ld.global.b32 %r1, [%rd100+4];\natom.global.gpu.relaxed.{name} %r2, [%rd100], %r1;\n", memory).raise_if_any()
    assert memory[0] == want


def test_registers_never_written() -> None:
    """Lanes without a value are harmless until one is used."""
    body = (
        AT + "setp.lt.u32 %p1, %r100, 8;\n@%p1 ld.global.b32 %r1, [%rd61];\nshfl.sync.bfly.b32 %r2, %r1, 4, 31, -1;\n"
    )
    body += "add.s32 %r3, %r1, %r2;\n"
    x = np.arange(32, dtype=np.uint32)
    run(body + "@%p1 st.global.b32 [%rd60], %r3;\n", np.zeros(32, np.uint32), x).raise_if_any()
    report = run(body + "st.global.b32 [%rd60], %r3;\n", np.zeros(32, np.uint32), x)
    assert kinds(report) == {"never written"}
    report = run(body.replace("4, 31", "8, 31") + "@%p1 st.global.b32 [%rd60], %r3;\n", np.zeros(32, np.uint32), x)
    assert kinds(report) == {"never written"}


COPY = SHARED.replace("2;\nadd", "4;\nadd") + "mul.wide.u32 %rd50, %r100, 16;\nadd.s64 %rd60, %rd100, %rd50;\n"
COPY += "add.s64 %rd61, %rd101, %rd50;\ncp.async.cg.shared.global [%r3], [%rd61], 16, %r9;\ncp.async.commit_group;\n"
BACK = "ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r3];\nst.global.v4.b32 [%rd60], {%r4, %r5, %r6, %r7};\n"


@pytest.mark.parametrize("copied", [16, 8, 0])
def test_async_copies(copied: int) -> None:
    x = np.arange(128, dtype=np.uint32).reshape(32, 4) + 1
    out = np.zeros_like(x)
    run(f"mov.b32 %r9, {copied};\n{COPY}cp.async.wait_group 0;\n{BACK}", out, x, shared=512).raise_if_any()
    assert (out == np.where(np.arange(4) < copied // 4, x, 0)).all()
    report = run(f"mov.b32 %r9, {copied};\n{COPY}cp.async.wait_group 1;\n{BACK}", out, x, shared=512)
    assert kinds(report) == {"early"}


def test_bytes_that_are_not_copied_may_be_out_of_bounds() -> None:
    x, out = np.zeros((1, 4), np.uint32), np.zeros((32, 4), np.uint32)
    body = "setp.eq.s32 %p1, %r100, 0;\nselp.b32 %r9, 16, 0, %p1;\n" + COPY + "cp.async.wait_all;\n" + BACK
    run(body, out, x, shared=512).raise_if_any()
    report = run(body.replace("setp.eq.s32 %p1, %r100, 0", "setp.le.s32 %p1, %r100, 1"), out, x, shared=512)
    assert kinds(report) == {"out of bounds"}


def test_half_of_a_register_never_written() -> None:
    """Packed arithmetic on one value and an undefined one; only the value is used."""
    body = AT + "ld.global.b32 %r1, [%rd61];\nmov.b64 %rd1, {%r1, %r9};\nadd.f32x2 %rd2, %rd1, %rd1;\n"
    body += "mov.b64 {%r2, %r3}, %rd2;\nst.global.b32 [%rd60], %r2;\n"
    x = np.arange(32, dtype=np.float32)
    out = np.zeros(32, np.float32)
    run(body, out, x).raise_if_any()
    assert (out == 2 * x).all()
    assert kinds(run(body.replace("st.global.b32 [%rd60], %r2", "st.global.b32 [%rd60], %r3"), out, x)) == {
        "never written"
    }


@pytest.mark.parametrize("barrier, expected", [("bar.sync 0;\n", set()), ("", {"race"})])
def test_shared_memory_overwritten_after_a_read(barrier: str, expected: set[str]) -> None:
    """All read one word, then warp 1 writes it: a race in any order."""
    body = "mov.b32 %r1, global_smem;\nsetp.eq.s32 %p1, %r100, 0;\n@%p1 st.shared.b32 [%r1], %r100;\nbar.sync 0;\n"
    body += "ld.shared.b32 %r2, [%r1];\n" + barrier
    body += "setp.eq.s32 %p2, %r100, 40;\n@%p2 st.shared.b32 [%r1], %r100;\n"
    for seed in range(6):
        assert kinds(run(body, np.zeros(1, np.uint32), num_warps=2, shared=4, seed=seed)) == expected


def test_a_plain_write_beside_a_strong_read() -> None:
    body = "setp.lt.u32 %p1, %r100, 32;\n@%p1 ld.relaxed.gpu.global.b32 %r5, [%rd100];\n"
    body += "setp.eq.s32 %p2, %r100, 40;\n@%p2 st.global.b32 [%rd100], %r100;\n"
    for seed in range(6):
        assert kinds(run(body, np.zeros(1, np.uint32), num_warps=2, seed=seed)) == {"race"}
