"""The package's kernels as compiled: values, findings, schedules, traffic."""

import itertools
from collections.abc import Callable

import pytest
import torch

from adcorre_kernels.gpu import gpus, plan
from tests.kernels.launched import pair_tools, tools
from tests.ptx import package
from tests.ptx.package import (
    FACTORS,
    PAIR_FACTORS,
    Case,
    PairCase,
    check,
    check_pairs,
    covering_set,
    machine,
    pair_covering_set,
    pair_problem_of,
    problem_of,
)

COVERING, PAIRS = covering_set(), pair_covering_set()
KERNELS = ["narrow, the paper's", "narrow, odd d", "narrow, sorted", "wide, counted", "blocks, long rows"]
SELECTION = [
    Case("narrow, odd d", torch.float32, "sm_80", "plain"),
    Case("narrow, sorted", torch.bfloat16, "sm_90", "strides"),
    Case("gram, far", torch.bfloat16, "sm_90", "ignored"),
    Case("wide, k > 16", torch.float16, "sm_120", "ignored"),
    Case("narrow, the least", torch.float32, "sm_90", "bad label"),
]
PAIR_SELECTION = [
    PairCase("odd d", "highest", "sm_80", "ignored"),
    PairCase("rows in blocks", "medium", "sm_120", "plain"),
]


@pytest.mark.parametrize("case", SELECTION, ids=str)
def test_a_selection(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", PAIR_SELECTION, ids=str)
def test_a_selection_of_pairs(case: PairCase) -> None:
    check_pairs(case)


@pytest.mark.parametrize("cases, factors", [(COVERING, FACTORS), (PAIRS, PAIR_FACTORS)], ids=["terms", "pairs"])
def test_the_covering_set_covers_every_pair(cases: list[tuple], factors: tuple) -> None:
    for (a, first), (b, second) in itertools.combinations(enumerate(factors), 2):
        assert {(case[a], case[b]) for case in cases} == set(itertools.product(first, second))


@pytest.mark.slow
@pytest.mark.sample(5)
@pytest.mark.parametrize("case", COVERING, ids=str)
def test_the_covering_set(case: Case, record_property: Callable[[str, object], None]) -> None:
    record_property("ptx", check(case).row(case))


@pytest.mark.slow
@pytest.mark.sample(5)
@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_the_covering_set_of_pairs(case: PairCase, record_property: Callable[[str, object], None]) -> None:
    record_property("ptx", check_pairs(case).row(case))


@pytest.mark.slow
@pytest.mark.parametrize("shape", KERNELS)
def test_the_same_bits_in_every_schedule(shape: str) -> None:
    problem, x = problem_of(Case(shape, torch.float32, "sm_90", "plain"))
    results = []
    for seed in range(3):
        with machine("sm_90", seed, resident=2 + seed) as report:
            results.append(tools.launch(problem, x))
        report.raise_if_any()
    for values, gradient in results[1:]:
        assert torch.equal(values, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_the_same_bits_of_pairs_in_every_schedule(precision: str) -> None:
    problem, rows = pair_problem_of(PairCase("several tiles", precision, "sm_80", "plain"))
    results = []
    for seed in range(3):
        with machine("sm_80", seed, resident=2 + seed) as report:
            results.append(pair_tools.launch_pairs(problem, precision, rows=rows))
        report.raise_if_any()
    for values, gradient in results[1:]:
        assert torch.equal(values, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.slow
@pytest.mark.sample(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_traffic_is_three_passes(dtype: torch.dtype) -> None:
    """Bytes to and from memory, all arguments: n k d elements forward, 2 n k d backward, within 2 %.

    And x and dL/dx, which no cache holds, are not read or written twice; whole sectors of them move.
    """
    n, k, d, num_classes = 8256, 7, 256, 7
    problem = package.draw(n, k, d, num_classes)
    # Centred: `gram_statistics` reads vectors that are far from it a second time.
    centred = problem.x - problem.x.mean(-1, keepdim=True)
    problem, x = tools.rounded(problem._replace(x=centred), dtype)
    with machine("sm_90", lockstep=True) as report:
        gpus.multiprocessors = lambda device: 1  # programs with as many samples each as at n = 1,048,576 on an H100
        plan.LOCAL_SAMPLES = 8192
        tools.launch(problem, x)
    report.raise_if_any()
    moved = {launch.kernel: launch for launch in report.counts}
    one = n * k * d * x.element_size()
    statistics = moved["warp_statistics" if dtype == torch.float32 else "gram_statistics"]
    gradient = moved["warp_gradient"]
    assert statistics.distinct_bytes == pytest.approx(one, rel=0.02)
    assert gradient.distinct_bytes == pytest.approx(2 * one, rel=0.02)
    assert 32 * statistics.global_sectors["x_ptr read"] == one
    assert 32 * gradient.global_sectors["x_ptr read"] == 32 * gradient.global_sectors["out_ptr write"] == one
    # The rest of kernels/README.md's model: labels twice, the order, slots (a row per warp; neighbours share a class).
    flat, tables = 4 * num_classes * k * (2 * d + 1), 4 * 2 * num_classes * k * d
    by_matrix = statistics.kernel == "gram_statistics"
    programs, rows, step = (8, 1, 2) if by_matrix else (2, 4, 4)  # programs of one or four warps; samples per step
    slots = 4 * (num_classes + programs - 1) * rows * 2 * k * (d + 1)
    ordering = moved["count_labels"].distinct_bytes + moved["place_samples"].distinct_bytes
    assert ordering == pytest.approx(n * (2 * 8 + 4 + 4 / step), rel=0.02)
    assert statistics.distinct_bytes == pytest.approx(one + 4 * n + slots, rel=0.002)
    assert moved["reduce_slots"].distinct_bytes == pytest.approx(slots + flat, rel=0.02)
    assert moved["terms_kernel"].distinct_bytes == pytest.approx(flat + tables, rel=0.02)
    assert gradient.distinct_bytes == pytest.approx(2 * one + 8 * n + tables, rel=0.002)
    assert sum(launch.distinct_bytes for launch in report.counts) == pytest.approx(3 * one, rel=0.02)
