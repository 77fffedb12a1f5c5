"""The package's kernels as compiled: values, findings, schedules, traffic."""

import itertools

import pytest
import torch

from tests.kernels.launched import tools
from tests.ptx import package
from tests.ptx.package import BATCHES, DTYPES, SHAPES, TARGETS, Case, check, covering_set, machine, problem_of

COVERING = covering_set()
KERNELS = ["narrow, the paper's", "narrow, sorted", "wide, k = 9", "blocks, long rows"]
SELECTION = [
    Case("narrow, odd d", torch.float32, "sm_80", "plain"),
    Case("narrow, sorted", torch.bfloat16, "sm_90", "strides"),
    Case("wide, k > 16", torch.float16, "sm_120", "ignored"),
    Case("narrow, the least", torch.float32, "sm_90", "bad label"),
]


@pytest.mark.parametrize("case", SELECTION, ids=str)
def test_a_selection(case: Case) -> None:
    check(case)


def test_the_covering_set_covers_every_pair() -> None:
    for (a, first), (b, second) in itertools.combinations(enumerate((tuple(SHAPES), DTYPES, TARGETS, BATCHES)), 2):
        assert {(case[a], case[b]) for case in COVERING} == set(itertools.product(first, second))


@pytest.mark.slow
@pytest.mark.parametrize("case", COVERING, ids=str)
def test_the_covering_set(case: Case) -> None:
    check(case)


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_traffic_is_three_passes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sectors of x and of its gradient: n k d elements forward, 2 n k d backward, within 2 %."""
    n, k, d = 512, 7, 256
    problem, x = tools.rounded(package.draw(n, k, d, 7), dtype)
    with machine("sm_90", lockstep=True) as report:
        tools.assert_within_budget(problem, x, tools.launch(problem, x))
    report.raise_if_any()
    moved = {"statistics": 0, "gradient": 0}
    for launch in report.counts:
        for step in moved:
            if launch.kernel.endswith(step):
                names = ("x_ptr read", "out_ptr write")
                moved[step] += 32 * sum(launch.global_sectors[name] for name in names)
    one = n * k * d * x.element_size()
    assert moved["statistics"] == pytest.approx(one, rel=0.02)
    assert moved["gradient"] == pytest.approx(2 * one, rel=0.02)
