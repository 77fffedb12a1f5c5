"""Every kernel compiled ahead of time for every target, checked against bench/limits.csv."""

import os
from dataclasses import fields

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

import triton

from adcorre_kernels.gpu import plan
from adcorre_kernels.gpu.gpus import FAMILIES
from bench import static
from bench.compiled import TARGETS, loss_launches

# The assembler of older Tritons spills here: 129 instead of 103 cycles a sample, 42 % of what an A100's memory takes.
OLDER_ASSEMBLER = {("gram_statistics", "sm_80"): {"stack": 352, "spills": 152}} if triton.__version__ < "3.9" else {}
QUICK = [("paper", "float32"), ("paper", "bfloat16"), ("blocks", "float32"), ("equation", "float32")]


def assert_within_limits(case: str, dtype: str, target: str) -> None:
    allowed = static.limits()
    rows = static.rows_of(case, dtype, target)
    assert rows
    for row in rows:
        assert static.complaints(row, allowed[case, row.kernel] | OLDER_ASSEMBLER.get((row.kernel, target), {})) == []
    for row in rows:
        if case == "paper" and row.kernel in static.STREAMING and FAMILIES[target].warps:
            assert (row.load_bits, row.store_bits if "gradient" in row.kernel else 128) == (128, 128), row
            assert row.bytes_in_flight >= 28 * 1024
        if row.kernel in static.TILED and FAMILIES[target].warps:
            assert row.matrix_instructions > 0, row


@pytest.mark.sample(3)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case, dtype", QUICK)
def test_every_kernel_compiles_within_its_limits(case, dtype, target) -> None:
    """Together these cases launch all kernels of Eq. 12 with linear terms."""
    assert_within_limits(case, dtype, target)


@pytest.mark.parametrize("precision, target", [("medium", "sm_90"), ("highest", "sm_120")])
def test_kernels_over_pairs_compile_within_their_limits(precision, target) -> None:
    assert_within_limits("pairs", precision, target)


@pytest.mark.slow
@pytest.mark.sample(4)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", static.cases())
def test_every_case_compiles_within_its_limits(case, target) -> None:
    for dtype in static.cases()[case]:
        assert_within_limits(case, dtype, target)


def test_every_kernel_is_listed() -> None:
    dtypes = [(case, dtype) for case in (*static.CASES, *static.EQUATION_CASES) for dtype in static.cases()[case]]
    launched = {launch.name for case, dtype in dtypes for launch in static.launches_of(case, dtype)}
    over_pairs = {launch.name for case in static.PAIR_CASES for launch in static.launches_of(case, "highest")}
    assert launched | over_pairs == {kernel for _, kernel in static.limits()}
    quick = {launch.name for case, dtype in QUICK for launch in static.launches_of(case, dtype)}
    assert quick == launched


@pytest.mark.parametrize("n", [0, 1, 60, 600, 10_000, 1 << 20, 1 << 22])
@pytest.mark.parametrize("num_classes", [1, 7, 16])
def test_three_launches_forward_or_five_and_one_backward(n, num_classes) -> None:
    """Five launches if one sorted order serves all programs."""
    order = ["count_labels", "place_samples"] if n > plan.LOCAL_SAMPLES else []
    for dtype, statistics in [(torch.float32, "warp_statistics"), (torch.bfloat16, "gram_statistics")]:
        forward = [*order, statistics, "reduce_slots", "terms_kernel"]
        launches = [launch.name for launch in loss_launches(n, 7, 256, num_classes, dtype)]
        assert launches == forward + ["warp_gradient"] * (n > 0)


def test_buffers_stay_small() -> None:
    """Memory besides inputs and dL/dx: 64 MiB at n = 1,048,576, C = 7."""
    launches = loss_launches(1 << 20, 7, 256, 7, torch.float32)
    buffers = {}
    for launch in launches[:-1]:
        for name, value in launch.arguments.items():
            if isinstance(value, torch.Tensor) and name not in ("x_ptr", "targets_ptr", "attention_ptr"):
                buffers[name] = value.numel() * value.element_size()
    assert sum(buffers.values()) < 64 << 20


def test_the_committed_table_is_whole_and_within_limits() -> None:
    rows = static.read()
    assert list(rows[0]) == [field.name for field in fields(static.Row)]
    listed = {(row["case"], row["dtype"], row["kernel"], row["target"]) for row in rows}
    for case, dtypes in static.cases().items():
        for dtype in dtypes:
            for target in TARGETS:
                names = {launch.name for launch in static.launches_of(case, dtype, target)}
                if dtype != "float32" and case not in static.PAIR_CASES:
                    names &= set(static.STREAMING)
                assert {(case, dtype, name, target) for name in names} <= listed
    shares = {(row["kernel"], row["dtype"]): float(row["h100_share"]) for row in rows if row["h100_share"]}
    assert shares.keys() == static.MOST_OF_H100.keys()
    assert all(shares[key] <= most for key, most in static.MOST_OF_H100.items())


def test_a_kernel_beyond_its_limits_is_named() -> None:
    row = static.Row("paper", "float32", "warp_gradient", "sm_90", "3.9.0", 300, 72, 0, 2, 900, 1, 3)
    row.h100_share = 0.9
    words = " ".join(static.complaints(row, static.limits()["paper", "warp_gradient"]))
    for message in (
        "registers 300 > 128",
        "stack 72 > 64",
        "barriers 1 > 0",
        "spills 3 > 0",
        "H100's budget 0.9 > 0.55",
    ):
        assert message in words
    row = static.Row("pairs", "medium", "pair_values", "sm_120", "3.9.0", 90, 0, 100 << 10)
    assert "shared 102400 > 101376" in static.complaints(row, static.limits()["pairs", "pair_values"])[0]
    row = static.Row("paper", "float32", "warp_gradient", "gfx942", "3.9.0", 80, 8, 0)
    assert "stack 8 > 0" in static.complaints(row, static.limits()["paper", "warp_gradient"])[0]


def test_the_readme_quotes_the_table() -> None:
    """kernels/README.md's figures for sm_90 are those of bench/results/static.csv."""
    rows = {
        (row["kernel"].removeprefix("warp_").removeprefix("gram_"), row["dtype"]): row
        for row in static.read()  # the rows of a kernel's successor follow its own
        if row["case"] == "paper" and row["target"] == "sm_90"
    }
    readme = (static.LIMITS.parents[1] / "kernels" / "README.md").read_text()
    for kernel in ("statistics", "gradient"):
        for dtype in ("float32", "bfloat16"):
            row = rows[kernel, dtype]
            shares = [f"{float(row[name]):.0%}".replace("%", " %") for name in ("h100_share", "h200_share")]
            cycles, flight = f"{float(row['issue_cycles']):.0f}", f"{int(row['bytes_in_flight']):,}"
            cells = [kernel, dtype, row["registers"], row["loop_barriers"], cycles, *shares, flight]
            assert f"| {' | '.join(cells)} |" in readme


def test_the_readme_quotes_the_table_of_pairs() -> None:
    rows = [row for row in static.read() if row["case"] == "pairs" and row["kernel"] in static.TILED]
    readme = (static.LIMITS.parents[1] / "kernels" / "README.md").read_text()
    quoted = [row for row in rows if row["dtype"] != "high" and FAMILIES[row["target"]].warps]
    assert len(quoted) == 2 * 2 * 4
    for row in quoted:
        share = f"{float(row['matrix_share']):.0%}".replace("%", " %")
        cycles = [f"{float(row[name]):,.0f}" for name in ("matrix_cycles", "issue_cycles")]
        shared = f"{int(row['shared']) / 1024:.0f}"
        names = [row["kernel"].removeprefix("pair_"), row["dtype"], row["target"]]
        cells = [*names, row["registers"], row["stack"], shared, share, *cycles, row["binds"]]
        assert f"| {' | '.join(cells)} |" in readme
