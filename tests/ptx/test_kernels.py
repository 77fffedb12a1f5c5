"""Values, for three targets, in several schedules with the same bits, and in lockstep."""

import pytest
import torch

import ptx_machine
from tests.ptx import samples

NAN = float("nan")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def everywhere(arch: str, launch, *outputs: torch.Tensor, schedules: int = 2) -> ptx_machine.Report:
    """Launch in several schedules and in lockstep: no finding, and the same bits in `outputs` each time."""
    first: list[torch.Tensor] = []
    fresh = [output.clone() for output in outputs]
    reports = []
    for seed, lockstep in [(seed, False) for seed in range(schedules)] + [(0, True)]:
        for output, blank in zip(outputs, fresh, strict=True):
            output.copy_(blank)
        with ptx_machine.target(arch, seed=seed, lockstep=lockstep) as report:
            launch()
        reports.append(report)
        report.raise_if_any()
        got = [output.clone().view(torch.uint8) for output in outputs]
        first = first or got
        assert all(torch.equal(a, b) for a, b in zip(first, got, strict=True)), f"seed {seed} gives other bits"
    return reports[-1]


@pytest.mark.parametrize("dtype", [F32, BF16, F16, torch.float64, torch.int64, torch.int8])
def test_add(arch: str, dtype: torch.dtype) -> None:
    x, y = (torch.randint(-50, 50, (1000,)).to(dtype) for _ in range(2))
    out = torch.zeros_like(x)
    everywhere(arch, lambda: samples.add[(2,)](x, y, out, 1000, B=512), out)
    assert torch.equal(out, x + y)


@pytest.mark.parametrize("dtype, tolerance", [(F32, 4e-6), (BF16, 0.3), (F16, 0.05)])
def test_rows(arch: str, dtype: torch.dtype, tolerance: float) -> None:
    x = torch.randn(3, 201).to(dtype)
    out = torch.full_like(x, NAN)
    everywhere(arch, lambda: samples.rows[(3,)](x, out, 201, B=256), out)
    v = x.double()
    peak = v.max(1, keepdim=True)[0]
    total = (v - peak).exp().sum(1, keepdim=True)
    truth = v.softmax(1) * (v.square().sum(1, keepdim=True) + 1e-6).rsqrt() + total.log() + peak.abs()
    truth += v.argmax(1, keepdim=True)
    assert ((out.double() - truth).abs() / truth.abs().clamp(min=1)).max() <= tolerance


@pytest.mark.parametrize(
    "dtype, precision, tolerance",
    [(F32, "ieee", 1e-5), (F32, "tf32", 5e-2), (F32, "tf32x3", 1e-5), (BF16, "ieee", 1e-5), (F16, "ieee", 1e-5)],
)
def test_dot(arch: str, dtype: torch.dtype, precision: str, tolerance: float) -> None:
    a, b = torch.randn(32, 72).to(dtype), torch.randn(72, 32).to(dtype)
    out = torch.full((32, 32), NAN)
    settings = {"M": 32, "N": 32, "BK": 32, "STAGES": 3, "PRECISION": precision}
    report = everywhere(arch, lambda: samples.dot[(1,)](a, b, out, 72, **settings), out)
    assert (out - a.double() @ b.double()).abs().max() <= tolerance
    assert (report.counts[0].instructions["matrix"] > 0) == (precision != "ieee" or dtype != F32)


def test_dots_in_loops_of_uneven_length(arch: str) -> None:
    a, b = torch.randn(4, 32, 32).half(), torch.randn(4, 32, 32).half()
    trips, out = torch.tensor([2, 0, 4, 1]), torch.full((4, 32, 32), NAN)
    everywhere(arch, lambda: samples.uneven_dots[(4,)](a, b, out, trips, M=32), out)
    for program, count in enumerate(trips.tolist()):
        assert torch.allclose(out[program].double(), (a[:count].double() @ b[:count].double()).sum(0), atol=1e-4)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_pipelined(arch: str, dtype: torch.dtype, n: int) -> None:
    x = torch.randn(n, 504).to(dtype)
    out = torch.full((504,), NAN)
    report = everywhere(arch, lambda: samples.pipelined[(1,)](x, out, n, 504, B=512, STAGES=3), out)
    assert torch.allclose(out, x.float().sum(0), atol=1e-5)
    if dtype == F32 and n != 1:  # n = 1 is a compile-time constant, and no loop is left
        assert report.counts[0].instructions["async copy"] > 0


def test_last_one_sums(arch: str) -> None:
    x = torch.randn(500)
    partial, out, counter = torch.full((8,), NAN), torch.full((1,), NAN), torch.zeros(1, dtype=torch.int32)

    def launch() -> None:
        samples.last_one_sums[(4,)](x, partial, counter, out, 500, B=128, P=8, SEM="acq_rel")

    everywhere(arch, launch, out, counter, schedules=4)
    assert torch.allclose(out, x.sum(), atol=1e-5)


def test_atomics(arch: str) -> None:
    x = torch.randint(0, 8, (300,), dtype=torch.int32)
    out = torch.zeros(12, dtype=torch.int32)
    out[9] = 100
    everywhere(arch, lambda: samples.atomics[(3,)](x, out, 300, B=128), out)
    assert out[:8].tolist() == x.bincount(minlength=8).tolist()
    assert out[8:].tolist() == [int(x.max()), 0, 7, 5]


@pytest.mark.parametrize("dtype", [F32, torch.int32, torch.int64])
def test_scans(arch: str, dtype: torch.dtype) -> None:
    x = torch.randperm(256).to(dtype)
    total, ordered, gathered, counts = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x), torch.zeros(8)
    counts = counts.int()
    everywhere(arch, lambda: samples.scans[(1,)](x, total, ordered, gathered, counts, B=256), total, ordered, gathered)
    assert torch.equal(total, x.cumsum(0).to(dtype))
    assert torch.equal(ordered, x.sort()[0])
    assert torch.equal(gathered, x[torch.arange(256) * 7 % 256])
    assert counts.tolist() == [32] * 8


def test_walk(arch: str) -> None:
    x = torch.randint(1, 9, (100,), dtype=torch.int32)
    out = torch.zeros(3, dtype=torch.int32)
    everywhere(arch, lambda: samples.walk[(3,)](x, out, 100, B=64), out)
    for program in range(3):
        i, total = int(x[program]), 0
        while i < 100:
            total += int(x[(torch.arange(64) + i) % 100].sum())
            i += int(x[i])
            total = total // 3 if total > 100 else total
        assert out[program] == total


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_transposed(arch: str, dtype: torch.dtype) -> None:
    x = torch.randint(-9, 9, (32, 64)).to(dtype)
    out, sums = torch.zeros(64, 32, dtype=dtype), torch.zeros(32, 64)
    everywhere(arch, lambda: samples.transposed[(1,)](x, out, sums, M=32, N=64), out, sums)
    assert torch.equal(out, x.t())
    assert torch.equal(sums, x.float().cumsum(0))


def test_through_memory(arch: str) -> None:
    x = torch.randn(256)
    scratch, out = torch.full((256,), NAN), torch.full((256,), NAN)
    everywhere(arch, lambda: samples.through_memory[(2,)](x, scratch, out, B=128, BARRIER=True), out)
    assert torch.equal(out, 2 * x.view(2, 128).flip(1).flatten())


def test_a_slice_and_its_neighbours(arch: str) -> None:
    """A column block of a matrix: memory between its rows does not belong to the tensor."""
    whole = torch.randn(6, 96)
    x, index = whole[:, 32:64], torch.tensor([5, 0, 3])
    out = torch.full((3, 96), NAN)
    everywhere(arch, lambda: samples.gather[(3,)](x, index, out, 6, 96, B=32), out[:, :32].contiguous())
    assert torch.equal(out[:, :32], x[index])


def test_counts() -> None:
    x, y = torch.randn(1024), torch.randn(1024)
    out = torch.zeros(1024)
    with ptx_machine.target("sm_90") as report:
        samples.add[(2,)](x, y, out, 1024, B=512, num_warps=4)
        samples.pipelined[(1,)](torch.randn(7, 512), torch.zeros(512), 7, 512, B=512, STAGES=3)
    first, second = report.counts
    assert (first.kernel, first.grid, first.num_warps, first.warps) == ("add", (2, 1, 1), 4, 8)
    assert first.instructions["f32"] == 8 * 4  # four elements a lane
    assert first.global_requests == {"x read": 8, "y read": 8, "out write": 8}
    assert first.global_sectors == {"x read": 128, "y read": 128, "out write": 128}
    assert first.distinct_bytes == sum(first.global_bytes.values()) == 3 * 4096
    assert second.global_distinct == second.global_sectors
    assert list(second.loop_trips.values()) == [7 * 4]  # seven of each of the four warps
    assert second.barriers > 0


def test_sectors_of_a_strided_request() -> None:
    x, index = torch.randn(64, 64), torch.arange(2)
    out = torch.zeros(2, 32)
    with ptx_machine.target("sm_90") as report:
        samples.gather[(2,)](x.t(), index, out, 64, 32, B=32, num_warps=1)
    assert report.counts[0].global_sectors["x read"] == 2 * 4
    with ptx_machine.target("sm_90") as report:
        samples.gather[(2,)](x, torch.zeros(2, dtype=torch.int64), out, 64, 32, B=32, num_warps=1)
    assert (report.counts[0].global_sectors["x read"], report.counts[0].global_distinct["x read"]) == (8, 4)


def test_launches_outside_of_a_target_raise_an_error() -> None:
    x = torch.randn(64)
    with ptx_machine.target("sm_90"):
        samples.add[(1,)](x, x, x.clone(), 64, B=64)
    with pytest.raises(RuntimeError, match="active drivers"):
        samples.add[(1,)](x, x, x.clone(), 64, B=64)


@pytest.mark.parametrize("wrong", ["sm_70", "gfx942", "90"])
def test_unknown_target(wrong: str) -> None:
    with pytest.raises(ValueError, match="expected one of sm_75"), ptx_machine.target(wrong):
        pass
