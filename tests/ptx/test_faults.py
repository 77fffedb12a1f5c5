"""Faults planted in sample kernels: each must be found, though most leave the values correct."""

import re

import pytest
import torch

import ptx_machine
from tests.ptx import samples

NAN = float("nan")


def kinds(report: ptx_machine.Report) -> set[str]:
    return {finding.kind for finding in report.findings}


def without(pattern: str, which: int):
    """Drops the `which`-th match of an instruction."""

    def rewrite(ptx: str) -> str:
        matches = list(re.finditer(pattern, ptx))
        return ptx[: matches[which].start()] + ptx[matches[which].end() :]

    return rewrite


def occurrences(arch: str, pattern: str, launch) -> int:
    text = []
    with ptx_machine.target(arch, rewrite=lambda ptx: text.append(ptx) or ptx):
        launch()
    return len(re.findall(pattern, text[-1]))


def pipelined() -> torch.Tensor:
    torch.manual_seed(1)
    out = torch.full((512,), NAN)
    samples.pipelined[(1,)](torch.randn(9, 512), out, 9, 512, B=512, STAGES=3)
    return out


def transposed() -> torch.Tensor:
    out, sums = torch.zeros(64, 32), torch.zeros(32, 64)
    samples.transposed[(1,)](torch.randn(32, 64), out, sums, M=32, N=64)
    return out


def rows() -> torch.Tensor:
    out = torch.full((2, 201), NAN)
    samples.rows[(2,)](torch.randn(2, 201), out, 201, B=256)
    return out


def dot() -> torch.Tensor:
    out = torch.full((32, 32), NAN)
    a, b = torch.randn(32, 128), torch.randn(128, 32)
    samples.dot[(1,)](a, b, out, 128, M=32, N=32, BK=32, STAGES=3, PRECISION="tf32")
    return out


# Redundant barriers: before the first use of shared memory, or with no use since the previous barrier.
IDLE = {"dot": 1, "rows": 1, "transposed": 1}


@pytest.mark.parametrize("launch", [transposed, rows, dot], ids=lambda f: f.__name__)
def test_dropped_barriers(arch: str, launch) -> None:
    pattern = r"bar\.sync\s+0;"
    missed = []
    count = occurrences(arch, pattern, launch)
    assert count
    for which in range(count):
        detected: set[str] = set()
        for seed in range(2):
            with ptx_machine.target(arch, seed=seed, rewrite=without(pattern, which)) as report:
                launch()
            detected |= kinds(report)
        if not detected & {"race", "early", "never written"}:
            missed.append(which)
    assert len(missed) <= IDLE[launch.__name__], f"{missed} of {count}"


@pytest.mark.parametrize("launch", [pipelined, dot], ids=lambda f: f.__name__)
def test_dropped_waits(arch: str, launch) -> None:
    pattern = r"cp\.async\.wait_group\s+\d+;"
    with ptx_machine.target(arch, rewrite=lambda ptx: re.sub(pattern, "", ptx)) as report:
        launch()
    assert "early" in kinds(report)


def test_a_wait_for_too_few(arch: str) -> None:
    """Two groups in flight instead of one: the data of an iteration arrive one iteration late."""
    with ptx_machine.target(arch, rewrite=lambda ptx: ptx.replace("wait_group \t1", "wait_group \t2")) as report:
        pipelined()
    assert "early" in kinds(report)
    assert all("samples.py" in finding.place for finding in report.findings)


@pytest.mark.parametrize("semantics", ["relaxed", "acquire", "release"])
def test_weakened_orderings(arch: str, semantics: str) -> None:
    """Values are correct in most schedules; the synchronization is missing in all."""
    x = torch.randn(500)
    for seed in range(3):
        partial, out, counter = torch.full((8,), NAN), torch.full((1,), NAN), torch.zeros(1, dtype=torch.int32)
        with ptx_machine.target(arch, seed=seed) as report:
            samples.last_one_sums[(4,)](x, partial, counter, out, 500, B=128, P=8, SEM=semantics)
        assert kinds(report) == {"race"}, report.findings
        finding = report.findings[0]
        assert finding.place.startswith("samples.py:")
        assert finding.other_place.startswith("samples.py:")
        assert finding.block != finding.other_block


def test_a_missing_debug_barrier(arch: str) -> None:
    x = torch.randn(256)
    for seed in range(3):
        scratch, out = torch.full((256,), NAN), torch.full((256,), NAN)
        with ptx_machine.target(arch, seed=seed) as report:
            samples.through_memory[(2,)](x, scratch, out, B=128, BARRIER=False)
        assert "race" in kinds(report)


def test_programs_that_write_one_place(arch: str) -> None:
    for seed in range(3):
        with ptx_machine.target(arch, seed=seed) as report:
            samples.neighbours[(3,)](torch.randn(400), torch.zeros(400), B=128, OVERLAP=1)
        assert kinds(report) == {"race"}
        with ptx_machine.target(arch, seed=seed) as report:
            samples.neighbours[(3,)](torch.randn(400), torch.zeros(400), B=128, OVERLAP=0)
        report.raise_if_any()


def test_a_wrong_divisibility_hint(arch: str) -> None:
    with ptx_machine.target(arch) as report:
        samples.hinted[(1,)](torch.randn(600), torch.zeros(600), 2, B=512)
    assert kinds(report) == {"misaligned"}
    with ptx_machine.target(arch) as report:
        samples.hinted[(1,)](torch.randn(600), torch.zeros(600), 4, B=512)
    report.raise_if_any()


@pytest.mark.parametrize("lockstep", [False, True])
@pytest.mark.parametrize("short", ["x", "y", "out"])
def test_a_buffer_one_element_short(arch: str, short: str, lockstep: bool) -> None:
    tensors = {name: torch.zeros(1001)[: 999 if name == short else 1000] for name in ("x", "y", "out")}
    with ptx_machine.target(arch, lockstep=lockstep) as report:
        samples.add[(2,)](*tensors.values(), 1000, B=512)
    assert kinds(report) == {"out of bounds"}
    assert f"of {short}, which has 3996 bytes" in str(report.findings[0])
    with pytest.raises(ptx_machine.FindingsError, match="out of bounds in add at samples.py:"):
        report.raise_if_any()


def test_between_the_rows_of_a_slice(arch: str) -> None:
    whole = torch.randn(6, 96)
    with ptx_machine.target(arch) as report:
        samples.gather[(1,)](whole[:, 32:64], torch.tensor([2]), torch.zeros(1, 96), 6, 96, B=64)
    assert kinds(report) == {"out of bounds"}


def test_an_index_far_outside(arch: str) -> None:
    with ptx_machine.target(arch) as report:
        samples.gather[(1,)](torch.randn(6, 96), torch.tensor([1 << 40]), torch.zeros(1, 96), 6, 96, B=64)
    assert kinds(report) & {"wild address", "out of bounds"}


def test_a_kernel_that_does_not_end() -> None:
    with (
        pytest.raises(ptx_machine.MachineError, match="walk does not end"),
        ptx_machine.target("sm_90", limit=20_000),
    ):
        samples.walk[(1,)](torch.zeros(100, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), 100, B=64)
